"""A Hugging Face data set on disk: parquet files, or a folder as `datasets` saves it.

Columns image (or a list of several), question and answer; thinking, boxes ([[x0, y0, x1, y1], …] in
0..1), family, id and earlier ([[question, reply], …]) may be missing. Images are decoded when they
are measured, so that a broken one costs itself alone.
"""

from collections import Counter
from pathlib import Path

from interp.data.readers import as_id, collect, each_image, encoded, fields, in_order, sample_of
from interp.data.saliency_r1 import table_in
from interp.data.sample import Sample


def load(path: Path, *, split: str, limit: int, seed: int | None = None) -> list[Sample]:
    """Samples of a folder; see `interp.data.load_samples`.

    Raises:
        ValueError: no such folder, other columns, or not one readable row.
    """
    table = table_in(path, split)
    missing = {"question", "answer"} - set(table.column_names)
    if missing:
        raise ValueError(
            f"{path}: expected columns image, question and answer, got {table.column_names}"
        )

    def make(number: int, row: dict, mended: Counter) -> Sample:
        with fields():
            name = row.get("id")
            return sample_of(
                row,
                mended,
                id=as_id(f"{split}-{number:06d}" if name in (None, "") else name),
                image=each_image(row["image"], encoded),
                dataset="hf",
                split=split,
            )

    rows = ((k, table[k]) for k in in_order(len(table), seed))
    return collect(rows, make, limit, path.name)
