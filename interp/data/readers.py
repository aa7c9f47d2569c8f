"""Shared by all readers: rows in order, boxes clamped to the image, rows left out and counted."""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float

from interp.data.sample import Sample, is_file_name

log = logging.getLogger("interp.data")


class Unfit(ValueError):
    """A row that is left out; the message is the reason that is counted."""


def collect(
    rows: Iterable, make: Callable[[int, object], Sample], limit: int, source: str
) -> list[Sample]:
    """The first `limit` samples that can be made; what cannot is counted by reason and logged.

    Raises:
        ValueError: not one row could be made.
    """
    samples: dict[str, Sample] = {}
    left_out: Counter[str] = Counter()
    for number, row in rows:
        if len(samples) == limit:
            break
        try:
            sample = make(number, row)
            if sample.id in samples:
                raise Unfit("an id that an earlier row has")
            if not is_file_name(sample.id):
                raise Unfit("an id that is not of letters, digits and . _ -")
            samples[sample.id] = sample
        except Unfit as reason:
            left_out[str(reason)] += 1
    for reason, count in left_out.most_common():
        log.warning("%s: %d rows left out: %s", source, count, reason)
    if not samples:
        reasons = ", ".join(left_out) or "no rows"
        raise ValueError(f"{source}: expected at least one readable row, got {reasons}")
    return list(samples.values())


def as_id(*parts) -> str:
    """An id that can name a file, from what identifies a row elsewhere."""
    return re.sub(r"[^\w.-]+", "_", "-".join(map(str, parts))).lstrip(".")[:200] or "_"


def encoded(image: dict | None) -> Path | bytes:
    """An image as `datasets` stores it: its file's content, or where that is.

    Raises:
        Unfit: neither.
    """
    if image and image.get("bytes"):
        return image["bytes"]
    if image and image.get("path"):
        return Path(image["path"])
    raise Unfit("no image in the row")


def in_order(n_rows: int, seed: int | None) -> Iterator[int]:
    """Row numbers in the file's order, or in a seeded one."""
    order = range(n_rows) if seed is None else np.random.default_rng(seed).permutation(n_rows)
    return iter(int(k) for k in order)


def inside(boxes: Float[np.ndarray, "box 4"]) -> Float[np.ndarray, "kept 4"]:
    """Boxes clamped to 0..1; those with no area left, or not finite, are dropped.

    Raises:
        Unfit: none is left.
    """
    clamped = np.clip(np.where(np.isfinite(boxes), boxes, 0), 0, 1)
    has_area = (clamped[:, 2:] > clamped[:, :2]).all(axis=1) & np.isfinite(boxes).all(axis=1)
    if not has_area.any():
        raise Unfit("no box with an area inside the image")
    return clamped[has_area]


def out_of_square(
    boxes: Float[np.ndarray, "box 4"], width: int, height: int
) -> Float[np.ndarray, "box 4"]:
    """Boxes of an image that was padded to a square, in 0..1 of the image itself.

    The padding lies on both sides of the shorter one, as Visual-CoT's conversion does it.
    """
    side = max(width, height)
    corner = np.array([(side - width) // 2, (side - height) // 2] * 2)
    return (boxes * side - corner) / np.array([width, height] * 2)
