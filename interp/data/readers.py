"""Shared by all readers: rows in order, boxes brought into the image, rows left out and counted."""

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import numpy as np
from jaxtyping import Float

from interp.data.boxes import brought_in, is_usable
from interp.data.sample import LONGEST_ID, Sample, is_file_name

log = logging.getLogger("interp.data")
N_NAMED = 3  # rows that a message names


class Unfit(ValueError):
    """A row that is left out; the message is the reason that is counted, the same for all rows."""


@contextmanager
def fields() -> Iterator[None]:
    """Context in which a sample is made of a row's fields; what does not fit is `Unfit`.

    Reasons name no row and no value: two thousand rows with one fault are one line.
    """
    try:
        yield
    except Unfit:
        raise
    except KeyError as error:
        raise Unfit(f"no {error} in the row") from error
    except (TypeError, AttributeError, IndexError) as error:
        raise Unfit("a field that is missing or of another type") from error
    except (ValueError, OverflowError) as error:
        raise Unfit(reason_of(error)) from error


def reason_of(error: Exception) -> str:
    """An error's message without the names and values in it: what was expected."""
    text = str(error)
    start = text.find("expected ")
    return re.split(r", got |; ", text[start:])[0] if start >= 0 else type(error).__name__


def collect(
    rows: Iterable,
    make: Callable[[int, object, Counter], Sample],
    limit: int,
    source: str,
) -> list[Sample]:
    """The first `limit` samples that can be made; what cannot is counted by reason and logged.

    Args:
        rows: (number, row), or (number, the `Unfit` that it is).
        make: from a number, a row and a counter of what was mended in it to a sample.
        limit: how many.
        source: name of the file, for messages.

    Raises:
        ValueError: not one row could be made.
    """
    samples: dict[str, Sample] = {}
    left_out: dict[str, list[int]] = {}
    mended: Counter[str] = Counter()
    for number, row in rows:
        if len(samples) == limit:
            break
        try:
            if isinstance(row, Unfit):
                raise row
            own: Counter[str] = Counter()
            sample = make(number, row, own)
            if sample.id in samples:
                raise Unfit("an id that an earlier row has")
            if not is_file_name(sample.id):
                raise Unfit(
                    f"an id that is not of letters, digits and . _ -, or longer than {LONGEST_ID} "
                    "bytes"
                )
            samples[sample.id] = sample
            mended += own
        except Unfit as reason:
            left_out.setdefault(str(reason), []).append(number)
    for reason, numbers in sorted(left_out.items(), key=lambda entry: -len(entry[1])):
        named = ", ".join(map(str, numbers[:N_NAMED])) + ", …" * (len(numbers) > N_NAMED)
        log.warning(
            "%s: %d rows left out: %s (counted from 0: %s)", source, len(numbers), reason, named
        )
    for change, count in mended.most_common():
        log.warning("%s: %d boxes %s", source, count, change)
    if not samples:
        reasons = ", ".join(left_out) or "no rows"
        raise ValueError(f"{source}: expected at least one readable row, got {reasons}")
    return list(samples.values())


def json_lines(path: Path) -> list[dict | Unfit]:
    """The objects of a JSONL file, a line each; a line that is none is `Unfit`, blank ones go.

    Lines end at newlines alone: U+2028 and its like are text inside a JSON string.
    """
    lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return [_json_object(line) for line in lines if line.strip()]


def _json_object(line: bytes) -> dict | Unfit:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError:
        return Unfit("a line that is not UTF-8")
    except (ValueError, RecursionError):
        return Unfit("a line that is no JSON")
    return row if isinstance(row, dict) else Unfit("a line that is no JSON object")


def as_id(*parts) -> str:
    """An id that can name a file, from what identifies a row elsewhere.

    One that is too long ends in a hash of the whole, so that two stay two.
    """
    text = "-".join(map(str, parts))
    name = re.sub(r"[^\w.-]+", "_", text).lstrip(".") or "_"
    if len(name.encode(errors="replace")) <= LONGEST_ID:
        return name
    short = name.encode(errors="replace")[: LONGEST_ID - 17].decode(errors="ignore")
    return f"{short}-{sha256(text.encode(errors='replace')).hexdigest()[:16]}"


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


def each_image(field, read: Callable):
    """A row's image, or a list of them, each as `read` gives it."""
    return [read(one) for one in field] if isinstance(field, list) else read(field)


def in_order(n_rows: int, seed: int | None) -> Iterator[int]:
    """Row numbers in the file's order, or in a seeded one."""
    order = range(n_rows) if seed is None else np.random.default_rng(seed).permutation(n_rows)
    return iter(int(k) for k in order)


def inside(boxes: Float[np.ndarray, "box 4"], mended: Counter[str]) -> Float[np.ndarray, "kept 4"]:
    """The usable ones of a row's boxes, in 0..1, and a count of what was done to them.

    A side that lies outside by at most 1 % is moved onto the border. A box that is further outside,
    has no area or is not finite is left out.

    Raises:
        Unfit: none is left.
    """
    moved = brought_in(boxes)
    is_kept = is_usable(moved)
    if not is_kept.any():
        raise Unfit("no box with an area inside the image")
    if not is_kept.all():
        mended["left out: outside the image by more than 1 %, or without an area"] += int(
            (~is_kept).sum()
        )
    n_moved = int((moved != boxes).any(axis=1)[is_kept].sum())
    if n_moved:
        mended["moved onto the border, which they crossed by at most 1 %"] += n_moved
    return moved[is_kept]


def sample_of(row: dict, mended: Counter[str], **facts) -> Sample:
    """A sample of a row whose fields have the names of `Sample`'s; `facts` are the other fields.

    Raises:
        Unfit: boxes that are none, or none of which is inside the image.
        KeyError, ValueError, TypeError: what `fields` turns into `Unfit`.
    """
    boxes = as_boxes(row.get("boxes"))
    return Sample(
        question=row["question"],
        answer=row.get("answer"),
        thinking=row.get("thinking"),
        boxes=None if boxes is None else inside(boxes, mended),
        family="" if row.get("family") is None else str(row["family"]),
        earlier=row.get("earlier") or (),
        **facts,
    )


def as_boxes(value) -> Float[np.ndarray, "box 4"] | None:
    """A row's boxes as an array; None where it has none.

    Raises:
        Unfit: not a list of four numbers each.
    """
    if value is None or (isinstance(value, list) and not value):
        return None
    try:
        boxes = np.asarray(value, dtype=np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise Unfit("boxes that are not lists of four numbers") from error
    if boxes.shape == (4,):
        boxes = boxes[np.newaxis]
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise Unfit("boxes that are not lists of four numbers")
    return boxes


def out_of_square(
    boxes: Float[np.ndarray, "box 4"], width: int, height: int
) -> Float[np.ndarray, "box 4"]:
    """Boxes of an image that was padded to a square, in 0..1 of the image itself.

    The padding lies on both sides of the shorter one, as Visual-CoT's conversion does it.
    """
    side = max(width, height)
    corner = np.array([(side - width) // 2, (side - height) // 2] * 2)
    return (boxes * side - corner) / np.array([width, height] * 2)
