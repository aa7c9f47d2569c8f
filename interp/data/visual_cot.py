"""Visual-CoT (Shao et al. 2024): questions with boxes of the evidence.

Reads both of its formats, a FILE or a folder with SPLIT.jsonl or SPLIT.json:

    meta, one object per line    question, answer, image, width, height, bboxs in pixels, dataset
    LLaVA, one JSON list         image: [path, "path###[x1, y1, x2, y2]"], conversations of 4 turns

Numbers in the conversations' text are a union box in a square-padded frame; the ### box is in
pixels of the image, and that is what is read. Image paths are relative to `images`, by default the
file's folder.
"""

import json
from pathlib import Path

import numpy as np

from interp.data.images import open_image
from interp.data.jsonl import contained
from interp.data.readers import Unfit, as_id, collect, in_order, inside
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
    text = path.read_text()
    is_meta = path.suffix == ".jsonl"
    rows = [json.loads(x) for x in text.splitlines() if x.strip()] if is_meta else json.loads(text)
    folder = path.parent if images is None else Path(images)

    def make(number: int, row: dict) -> Sample:
        try:
            name, question, answer, boxes = (_of_meta if is_meta else _of_llava)(row, folder)
            image = contained(folder, name)
            return Sample(
                id=as_id(row.get("dataset", path.stem), split, row.get("question_id", number)),
                image=image,
                question=question,
                answer=answer,
                boxes=inside(boxes),
                family=str(row.get("dataset", "")),
                dataset="visual_cot",
                split=split,
            )
        except Unfit:
            raise
        except KeyError as error:
            raise Unfit(f"no {error} in the row") from error
        except (ValueError, TypeError, IndexError) as error:
            raise Unfit(f"{type(error).__name__}: {error}") from error

    order = ((k, rows[k]) for k in in_order(len(rows), seed))
    return collect(order, make, limit, path.name)


def _of_meta(row: dict, _folder: Path) -> tuple[str, str, str, np.ndarray]:
    size = np.array([row["width"], row["height"]] * 2, dtype=np.float64)
    boxes = np.array(row["bboxs"], dtype=np.float64).reshape(-1, 4) / size
    return row["image"], row["question"], row["answer"], boxes


def _of_llava(row: dict, folder: Path) -> tuple[str, str, str, np.ndarray]:
    name, marked = row["image"]
    pixels = np.array(json.loads(marked.split("###", 1)[1]), dtype=np.float64).reshape(1, 4)
    width, height = open_image(contained(folder, name)).size
    prompt, answer = row["conversations"][0]["value"], row["conversations"][-1]["value"]
    question = prompt.replace("<image>", "").split(CLUE)[0].strip()
    return name, question, answer, pixels / np.array([width, height] * 2)
