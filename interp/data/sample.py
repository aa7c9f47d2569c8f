r"""Sample: one image, question and answer, with thinking text, evidence boxes and a twin.

The text that a model writes, or is taught to write, has the form of Saliency-R1:
``<think>\n{thinking}\n</think>\n{answer}``; without thinking it is the answer alone.
"""

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Optional

import numpy as np
from jaxtyping import Float
from PIL import Image

from interp.data.boxes import brought_in, check_boxes
from interp.data.images import open_image

LONGEST_ID = 200  # bytes: file systems take 255, endings included
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"


@dataclass(frozen=True, eq=False)
class Sample:
    """One question about one image, with its reference text."""

    id: str
    """Unique within its data set and split."""
    image: Image.Image | Path | bytes
    """An RGB image, the file to read it from, or that file's content (see `open_image`)."""
    question: str
    answer: str
    thinking: str | None = None
    """Text between the tags, without them; None where the data has none."""
    boxes: Float[np.ndarray, "box 4"] | Sequence | None = None
    """Evidence, (x0, y0, x1, y1) in 0..1 of the upright image; None where not annotated. Given as
    an array or lists; what lies outside by at most 1 % of a side is moved onto the border."""
    family: str = ""
    """Kind of question, for grouping."""
    twin: Optional["Sample"] = None
    """The same scene with one attribute of the evidence changed, so that the answer changes."""
    dataset: str = ""
    split: str = ""

    def __post_init__(self):
        if not isinstance(self.image, Image.Image | Path | bytes):
            raise ValueError(
                f"sample {self.id}: expected one image or its path, got {type(self.image).__name__}"
            )
        for name in ("id", "question", "answer", "thinking", "family"):
            _check_text(getattr(self, name), f"sample {self.id!r}: expected {name}")
        if not self.answer.strip():
            raise ValueError(f"sample {self.id}: expected a non-empty answer, got {self.answer!r}")
        if self.boxes is not None:
            boxes = brought_in(_as_boxes(self.boxes, self.id))
            check_boxes(boxes, self.id)
            object.__setattr__(self, "boxes", boxes)

    @property
    def text(self) -> str:
        """The reference text that teacher forcing uses."""
        return format_text(self.thinking, self.answer)

    @property
    def fingerprint(self) -> str:
        """A hash over image, question, text, boxes and twin."""
        image = open_image(self.image)
        boxes = b"" if self.boxes is None else np.asarray(self.boxes, dtype=np.float64).tobytes()
        twin = "" if self.twin is None else self.twin.fingerprint
        facts = json.dumps([image.size, self.question, self.thinking, self.answer, twin]).encode()
        return sha256(image.tobytes() + facts + boxes).hexdigest()[:16]


def is_file_name(text: str) -> bool:
    """Whether an id can name a file: letters, digits and . _ -, not too long, not hidden."""
    is_short = len(text.encode(errors="replace")) <= LONGEST_ID
    # Marks belong to letters: vowel signs of Indic scripts, accents that stand apart.
    kinds = {unicodedata.category(char)[0] for char in text if char not in "._-"}
    return bool(text) and text[0] != "." and is_short and kinds <= set("LMN")


def format_text(thinking: str | None, answer: str) -> str:
    """The text of the paper's format, or the bare answer where there is no thinking."""
    if thinking is None:
        return answer
    return f"{THINK_OPEN}\n{thinking}\n{THINK_CLOSE}\n{answer}"


def _as_boxes(boxes, name: str) -> np.ndarray:
    try:
        return np.asarray(boxes, dtype=np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(
            f"{name}: expected boxes [[x0, y0, x1, y1], …] of numbers, got {boxes!r:.80}"
        ) from error


def _check_text(value, expected: str) -> None:
    if value is None and expected.endswith("thinking"):
        return
    if not isinstance(value, str):
        raise ValueError(f"{expected} as text, got {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{expected} as valid Unicode, got a lone surrogate in it") from error
