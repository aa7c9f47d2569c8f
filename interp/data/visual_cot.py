"""Visual-CoT (Shao et al. 2024): questions with boxes of the evidence.

Reads both of its formats, a FILE or a folder with SPLIT.jsonl or SPLIT.json:

    meta, one object per line    question, answer, image, width, height, bboxs in pixels, dataset
    LLaVA, one JSON list         image: [path, "path###[x1, y1, x2, y2]"], conversations of 4 turns

Numbers in the conversations' text are a union box in a square-padded frame; the ### box is in
pixels of the image, and that is what is read. Image paths are relative to `images`, by default the
file's folder.
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np

from interp.data.images import TURNED, stored_size, turned_boxes, upright_size
from interp.data.jsonl import contained
from interp.data.readers import (
    Unfit,
    as_boxes,
    as_id,
    collect,
    fields,
    in_order,
    inside,
    json_lines,
)
from interp.data.sample import Sample

CLUE = "Please provide the bounding box coordinate"


def load(
    path: Path, *, split: str, limit: int, seed: int | None = None, images: Path | None = None
) -> list[Sample]:
    """Samples of a file; see `interp.data.load_samples`.

    Args:
        path: the file, or a folder with SPLIT.jsonl or SPLIT.json.
        split, limit, seed: as there.
        images: folder that image paths are relative to.

    Raises:
        ValueError: no such file, or not one readable row.
    """
    if path.is_dir():
        candidates = [path / f"{split}.jsonl", path / f"{split}.json"]
        file = next((file for file in candidates if file.is_file()), None)
        if file is None:
            raise ValueError(f"{path}: expected {split}.jsonl or {split}.json in it, got neither")
        path = file
    if not path.is_file():
        raise ValueError(f"{path}: expected a file of Visual-CoT, got none")
    is_meta = path.suffix == ".jsonl"
    rows = json_lines(path) if is_meta else _json_list(path)
    folder = path.parent if images is None else Path(images)

    def make(number: int, row: dict, mended: Counter) -> Sample:
        with fields():
            name, question, answer, boxes = (_of_meta if is_meta else _of_llava)(row, folder)
            number = row.get("question_id") if row.get("question_id") is not None else number
            return Sample(
                id=as_id(row.get("dataset") or path.stem, split, number),
                image=contained(folder, name),
                question=question,
                answer=answer,
                boxes=inside(boxes, mended),
                family=str(row.get("dataset") or ""),
                dataset="visual_cot",
                split=split,
            )

    order = ((k, rows[k]) for k in in_order(len(rows), seed))
    return collect(order, make, limit, path.name)


def _json_list(path: Path) -> list[dict | Unfit]:
    try:
        rows = json.loads(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name}: expected one JSON list of rows, got {error}") from error
    if not isinstance(rows, list):
        raise ValueError(
            f"{path.name}: expected one JSON list of rows, got one {type(rows).__name__}"
        )
    return [row if isinstance(row, dict) else Unfit("a row that is no JSON object") for row in rows]


def _of_meta(row: dict, folder: Path) -> tuple[str, str, str, np.ndarray]:
    boxes = as_boxes(row["bboxs"])
    if boxes is None:
        raise Unfit("no box in the row")
    size = (float(row["width"]), float(row["height"]))
    boxes = boxes / np.array([*size, *size])
    path = contained(folder, row["image"])
    if path.is_file():  # a missing one is reported when it is measured, as everywhere
        stored, orientation = stored_size(path)
        if size == stored != stored[::-1] and orientation in TURNED:
            boxes = turned_boxes(boxes, orientation)  # as its sides, of the image as it is stored
    return row["image"], row["question"], row["answer"], boxes


def _of_llava(row: dict, folder: Path) -> tuple[str, str, str, np.ndarray]:
    name, marked = row["image"]
    pixels = as_boxes(json.loads(marked.split("###", 1)[1]))
    width, height = upright_size(contained(folder, name))
    prompt, answer = row["conversations"][0]["value"], row["conversations"][-1]["value"]
    question = prompt.replace("<image>", "").split(CLUE)[0].strip()
    return name, question, answer, pixels / np.array([width, height] * 2)
