"""saliency-r1-8k, the rows on which Saliency-R1 was trained: one union box per row, as text.

A folder as `datasets` saves it (save_to_disk), or parquet files: SPLIT.parquet, SPLIT-*.parquet, or
files that name no split. Columns dataset, split, question_id, problem, bbox ("[x1, y1, x2, y2]"),
solution, image.

In which frame the boxes are is not documented: in 0..1 of the image (`frame="image"`, what everyone
assumes), or of the image padded to a square (`frame="padded"`). `frame_evidence` tells from data.
"""

import glob
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
from jaxtyping import Float

from interp.data.images import upright_size
from interp.data.readers import (
    Unfit,
    as_id,
    collect,
    encoded,
    fields,
    in_order,
    inside,
    out_of_square,
)
from interp.data.sample import Sample

SPLITS = ("train", "training", "test", "testing", "validation", "valid", "val", "dev", "eval")
FRAMES = ("image", "padded")


def load(
    path: Path, *, split: str, limit: int, seed: int | None = None, frame: str = "image"
) -> list[Sample]:
    """Samples of a folder; see `interp.data.load_samples`.

    Args:
        path: the folder.
        split, limit, seed: as there.
        frame: of the boxes, "image" or "padded".

    Raises:
        ValueError: no such folder or frame, other columns, or not one readable row.
    """
    if frame not in FRAMES:
        raise ValueError(f"expected a frame of {FRAMES}, got {frame!r}")
    table = table_in(path, split)
    missing = {"problem", "solution", "bbox", "image"} - set(table.column_names)
    if missing:
        raise ValueError(f"{path}: expected columns {sorted(missing)} besides the others, got none")

    def make(number: int, row: dict, mended: Counter) -> Sample:
        with fields():
            image = encoded(row["image"])
            boxes = parsed_box(row["bbox"])
            if frame == "padded":
                boxes = out_of_square(boxes, *upright_size(image))
            name = row.get("question_id")
            return Sample(
                id=as_id(row.get("dataset") or "row", number if name is None else name),
                image=image,
                question=row["problem"],
                answer=row["solution"],
                boxes=inside(boxes, mended),
                family=str(row.get("dataset") or ""),
                dataset="saliency_r1",
                split=split,
            )

    order = ((k, table[k]) for k in in_order(len(table), seed))
    return collect(order, make, limit, path.name)


def parsed_box(text: str) -> Float[np.ndarray, "1 4"]:
    """A box out of its text.

    Raises:
        Unfit: not four numbers.
    """
    try:
        numbers = np.array(json.loads(text), dtype=np.float64)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise Unfit("a box that is not four numbers") from error
    if numbers.shape != (4,):
        raise Unfit("a box that is not four numbers")
    return numbers.reshape(1, 4)


def frame_evidence(samples: list[tuple[tuple[int, int], np.ndarray]]) -> dict[str, int]:
    """How many landscape rows have a box that a square-padded frame could not hold.

    In a landscape image padded above and below, no box starts above or ends below the image: a
    single violation proves that boxes are in 0..1 of the image itself.

    Args:
        samples: (width, height) of each image, and its boxes as they are in the file.
    """
    landscape = [(w, h, boxes) for (w, h), boxes in samples if w > h]
    margin = [((w - h) / (2 * w), boxes) for w, h, boxes in landscape]
    n_proofs = sum(
        bool((boxes[:, 1] < m - 1e-3).any() or (boxes[:, 3] > 1 - m + 1e-3).any())
        for m, boxes in margin
    )
    return {"landscape": len(landscape), "outside_the_padded_image": n_proofs}


def _is_of_split(stem: str, split: str) -> bool:
    """Whether a parquet file's name begins with the split's, as the hub names its shards."""
    return re.match(rf"{re.escape(split)}([-_.]|$)", stem) is not None


def table_in(path: Path, split: str):
    """A data set on disk, parquet files or as `datasets` saves it; images are not decoded.

    Raises:
        ValueError: no such folder, no data set in it, not this split, or no package datasets.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ValueError(
            "expected the package datasets to read a data set of that form, got none; "
            "pip install 'vlm-interp[train]'"
        ) from error
    if not path.is_dir():
        raise ValueError(f"{path}: expected a folder, got none")
    every = sorted(path.rglob("*.parquet"))
    files = [file for file in every if _is_of_split(file.stem, split)]
    if every and not files:
        # Files that name no split at all hold whatever is asked for.
        if any(_is_of_split(file.stem, name) for file in every for name in SPLITS):
            raise ValueError(
                f"{path}: expected parquet files of the split {split!r}, got "
                f"{sorted({file.name for file in every})[:5]}"
            )
        files = every
    if files:
        names = [glob.escape(str(file)) for file in files]
        table = datasets.load_dataset("parquet", data_files=names, split="train")
    else:
        try:
            table = datasets.load_from_disk(str(path))
        except FileNotFoundError as error:
            raise ValueError(
                f"{path}: expected parquet files or a saved data set, got none"
            ) from error
        if isinstance(table, datasets.DatasetDict):
            if split not in table:
                raise ValueError(f"{path}: expected a split of {sorted(table)}, got {split!r}")
            table = table[split]
    if "image" not in table.column_names:
        raise ValueError(f"{path}: expected a column image, got {table.column_names}")
    # One image that cannot be decoded would end the iteration.
    table.reset_format()  # how rows were looked at when they were saved
    return table.cast_column("image", datasets.Image(decode=False))
