"""A folder with SPLIT.jsonl (or samples.jsonl) and images, one sample per line.

    {"id": "a", "image": "images/a.png", "question": "…", "answer": "…",
     "thinking": "…" or null, "boxes": [[x0, y0, x1, y1], …] or null, "family": "…"}

`image` is a path relative to the file, which may not leave its folder, or a list of several; boxes
are in 0..1 of the one upright image. `answer`, `thinking`, `boxes`, `family`, `id` and `earlier`
([[question, reply], …]) may be missing or null.
"""

import math
from collections import Counter
from functools import partial
from pathlib import Path

from interp.data.readers import collect, each_image, fields, in_order, json_lines, sample_of
from interp.data.sample import Sample


def load(folder: Path, *, split: str, limit: int, seed: int | None = None) -> list[Sample]:
    """Samples of a split; see `interp.data.load_samples`.

    Raises:
        ValueError: no such file, or not one readable line.
    """
    candidates = [folder / f"{split}.jsonl", folder / "samples.jsonl"]
    path = next((one for one in candidates if one.is_file()), None)
    if path is None:
        raise ValueError(f"{folder}: expected {split}.jsonl or samples.jsonl in it, got neither")
    rows = json_lines(path)

    def make(number: int, row: dict, mended: Counter) -> Sample:
        with fields():
            name = row.get("id")
            return sample_of(
                row | {"answer": _as_text(row.get("answer"))},
                mended,
                id=f"{path.stem}-{number:06d}" if name is None else str(name),
                image=each_image(row["image"], partial(contained, path.parent)),
                dataset="jsonl",
                split=split,
            )

    order = ((k, rows[k]) for k in in_order(len(rows), seed))
    return collect(order, make, limit, str(path.name))


def _as_text(answer):
    """An answer that is a number as text; what else is no text is left to be refused."""
    is_number = isinstance(answer, int | float) and not isinstance(answer, bool)
    return str(answer) if is_number and math.isfinite(answer) else answer


def contained(folder: Path, name: str) -> Path:
    """A file inside the folder.

    Raises:
        ValueError: the path leaves the folder.
    """
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"expected an image inside the folder, got {name!r}")
    return path
