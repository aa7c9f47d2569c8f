"""A folder with SPLIT.jsonl (or samples.jsonl) and images, one sample per line.

    {"id": "a", "image": "images/a.png", "question": "…", "answer": "…",
     "thinking": "…" or null, "boxes": [[x0, y0, x1, y1], …] or null, "family": "…"}

`image` is a path relative to the file and may not leave its folder; boxes are in 0..1 of the image.
`thinking`, `boxes` and `family` may be missing.
"""

import json
from pathlib import Path

import numpy as np

from interp.data.readers import Unfit, collect, in_order
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
    lines = [line for line in path.read_text().splitlines() if line.strip()]

    def make(number: int, line: str) -> Sample:
        return _sample(line, path, split, number)

    rows = ((k, lines[k]) for k in in_order(len(lines), seed))
    return collect(rows, make, limit, str(path.name))


def _sample(line: str, path: Path, split: str, number: int) -> Sample:
    try:
        row = json.loads(line)
        image = contained(path.parent, row["image"])
        boxes = row.get("boxes")
        return Sample(
            id=str(row.get("id", f"{path.stem}-{number:06d}")),
            image=image,
            question=row["question"],
            answer=row["answer"],
            thinking=row.get("thinking"),
            boxes=None if not boxes else np.array(boxes, dtype=np.float64).reshape(-1, 4),
            family=row.get("family", ""),
            dataset="jsonl",
            split=split,
        )
    except KeyError as error:
        raise Unfit(f"no {error} in the line") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise Unfit(f"{type(error).__name__}: {error}") from error


def contained(folder: Path, name: str) -> Path:
    """A file inside the folder.

    Raises:
        ValueError: the path leaves the folder.
    """
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"expected an image inside the folder, got {name!r}")
    return path
