r"""Sample: image, question and answer, with thinking text, evidence boxes and a twin.

The text that a model writes, or is taught to write, has the form of Saliency-R1:
``<think>\n{thinking}\n</think>\n{answer}``; without thinking it is the answer alone.
"""

import json
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Optional
from weakref import WeakValueDictionary

import numpy as np
from jaxtyping import Float

from interp.data.boxes import as_boxes, brought_in, check_boxes
from interp.data.images import given_image, open_image

LONGEST_ID = 200  # bytes: file systems take 255, endings included
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"


@dataclass(frozen=True, eq=False)
class Sample:
    """One question about one image, with its reference text where there is one.

    Image and question are all that somebody needs who asks what a model says and why.
    """

    id: str | None = None
    """Unique within its data set and split; the image's name by default."""
    image: Any = None
    """The picture in whatever form (see `given_image`); kept as an open image, the file to read it
    from, or that file's content. A list of several is kept as a tuple of these; None is a question
    about text alone."""
    question: str = ""
    answer: str | None = None
    """The right answer; None where nobody knows it."""
    thinking: str | None = None
    """Text between the tags, without them; None where the data has none."""
    boxes: Float[np.ndarray, "box 4"] | Sequence | None = None
    """Evidence, (x0, y0, x1, y1) in 0..1 of the upright image; None where not annotated. Given as
    an array or lists; what lies outside by at most 1 % of a side is moved onto the border."""
    family: str = ""
    """Kind of question, for grouping."""
    twin: Optional["Sample"] = None
    """The same scene with one attribute of the evidence changed, so that the answer changes."""
    earlier: Iterable = ()
    """Earlier turns of the conversation, (question, reply) each, kept as tuples; images stand in
    the first turn."""
    dataset: str = ""
    split: str = ""

    def __post_init__(self):
        name = "a sample" if self.id is None else f"sample {self.id}"
        try:
            given = [given_image(one) for one in _listed(self.image)]
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        image = tuple(given) if len(given) > 1 else given[0] if given else None
        object.__setattr__(self, "image", image)
        object.__setattr__(self, "earlier", _turns(self.earlier, name))
        if self.id is None:
            name = self.image.stem if isinstance(self.image, Path) else ""
            object.__setattr__(self, "id", name if is_file_name(name) else "sample")
        for name in ("id", "question", "answer", "thinking", "family"):
            _check_text(getattr(self, name), f"sample {self.id!r}: expected {name}")
        if self.answer is not None and not self.answer.strip():
            raise ValueError(f"sample {self.id}: expected a non-empty answer, got {self.answer!r}")
        if self.boxes is not None:
            if len(self.images) != 1:
                raise ValueError(
                    f"sample {self.id}: expected one image with boxes, got {len(self.images)}; "
                    "name patches of several as sources={name: [rows]}"
                )
            boxes = brought_in(as_boxes(self.boxes, self.id))
            check_boxes(boxes, self.id)
            object.__setattr__(self, "boxes", boxes)

    @property
    def images(self) -> tuple:
        """All its images, in order: none, one or several."""
        return tuple(_listed(self.image))

    @property
    def text(self) -> str:
        """The reference text that teacher forcing uses.

        Raises:
            ValueError: no answer.
        """
        if self.answer is None:
            raise ValueError(
                f"{self.id}: expected a text to explain, got a sample without an answer; pass "
                "completion=vlm.answer(image, question), or one of your own"
            )
        return format_text(self.thinking, self.answer)

    @property
    def fingerprint(self) -> str:
        """A hash over image, question, text, boxes and twin."""
        images = [open_image(one) for one in self.images]
        boxes = b"" if self.boxes is None else np.asarray(self.boxes, dtype=np.float64).tobytes()
        twin = "" if self.twin is None else self.twin.fingerprint
        size = images[0].size if len(images) == 1 else [one.size for one in images]
        facts = [size, self.question, self.thinking, self.answer, twin]
        facts += [self.earlier] if self.earlier else []  # what was hashed before there were any
        pixels = b"".join(one.tobytes() for one in images)
        return sha256(pixels + json.dumps(facts).encode() + boxes).hexdigest()[:16]


_AT_HAND = WeakValueDictionary()  # data hash → sample, for as long as somebody holds it


def remember(sample: Sample, data_hash: str) -> None:
    """Keeps where a dataset's picture is, for as long as somebody holds the sample."""
    _AT_HAND[data_hash] = sample


def at_hand(data_hash: str) -> Sample | None:
    """The sample that a dataset is about; None where nobody holds it any more."""
    return _AT_HAND.get(data_hash)


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


def _listed(image) -> list:
    """None, one or several images as a list.

    Raises:
        ValueError: an empty list, which is more often a mistake than a question about text.
    """
    if isinstance(image, list | tuple):
        if len(image) == 0:
            raise ValueError("expected images, or None for text alone, got an empty list")
        return list(image)
    return [] if image is None else [image]


def _turns(earlier, name: str) -> tuple[tuple[str, str], ...]:
    """Earlier turns, checked."""
    try:
        turns = tuple((question, reply) for question, reply in earlier)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name}: expected earlier turns as [(question, reply), …], got {earlier!r:.80}"
        ) from error
    for question, reply in turns:
        _check_text(question, f"{name}: expected an earlier question")
        _check_text(reply, f"{name}: expected an earlier reply")
    return turns


def _check_text(value, expected: str) -> None:
    if value is None and expected.endswith(("thinking", "answer")):
        return
    if not isinstance(value, str):
        raise ValueError(f"{expected} as text, got {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{expected} as valid Unicode, got a lone surrogate in it") from error
