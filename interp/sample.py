r"""Sample: one image, question and answer, with thinking text, evidence boxes and a twin.

The text that a model writes, or is taught to write, has the form of Saliency-R1:
``<think>\n{thinking}\n</think>\n{answer}``; without thinking it is the answer alone.
"""

import re
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Optional

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_IMAGE_PIXELS = 50_000_000
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
    boxes: Float[np.ndarray, "box 4"] | None = None
    """Evidence, (x0, y0, x1, y1) in 0..1 of the original image; None where not annotated."""
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
            check_boxes(self.boxes, self.id)

    @property
    def text(self) -> str:
        """The reference text that teacher forcing uses."""
        return format_text(self.thinking, self.answer)

    @property
    def fingerprint(self) -> str:
        """A hash over image, question, text and boxes."""
        image = open_image(self.image)
        boxes = b"" if self.boxes is None else np.asarray(self.boxes, dtype=np.float64).tobytes()
        facts = f"{image.size}{self.question}\n{self.text}".encode()
        return sha256(image.tobytes() + facts + boxes).hexdigest()[:16]


def is_file_name(text: str) -> bool:
    """Whether an id can name a file: letters, digits and . _ -, not too long, not hidden."""
    return re.fullmatch(r"[\w-][\w.-]{0,199}", text) is not None


def format_text(thinking: str | None, answer: str) -> str:
    """The text of the paper's format, or the bare answer where there is no thinking."""
    if thinking is None:
        return answer
    return f"{THINK_OPEN}\n{thinking}\n{THINK_CLOSE}\n{answer}"


def _check_text(value, expected: str) -> None:
    if value is None and expected.endswith("thinking"):
        return
    if not isinstance(value, str):
        raise ValueError(f"{expected} as text, got {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{expected} as valid Unicode, got a lone surrogate in it") from error


def check_boxes(boxes: np.ndarray, name: str = "sample") -> None:
    """Raises ValueError unless every box is finite, inside 0..1 and of positive area."""
    if boxes.ndim != 2 or boxes.shape[1] != 4 or len(boxes) == 0:
        raise ValueError(
            f"{name}: expected boxes of shape (k, 4) with k >= 1, got {boxes.shape}; "
            "use boxes=None where there is no annotation"
        )
    inside = np.isfinite(boxes).all() and (boxes >= 0).all() and (boxes <= 1).all()
    if not inside or (boxes[:, 2:] <= boxes[:, :2]).any():
        raise ValueError(
            f"{name}: expected boxes (x0, y0, x1, y1) in 0..1 with x0 < x1 and y0 < y1, "
            f"got {boxes.tolist()}; divide by the image's width and height and clamp"
        )


def open_image(
    image: Image.Image | Path | bytes, max_pixels: int = MAX_IMAGE_PIXELS
) -> Image.Image:
    """The image in RGB, upright, decoded only if it has at most `max_pixels` pixels.

    Raises:
        ValueError: the file is missing, not an image, truncated or too large.
    """
    if isinstance(image, Image.Image):
        return _to_rgb(image)
    name = image.name if isinstance(image, Path) else "image"
    try:
        with Image.open(image if isinstance(image, Path) else BytesIO(image)) as opened:
            width, height = opened.size
            if width * height > max_pixels:
                raise ValueError(
                    f"{name}: expected at most {max_pixels} pixels, got {width} x {height}; "
                    "downscale the image"
                )
            opened.load()
            return _to_rgb(ImageOps.exif_transpose(opened))
    except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name}: expected a readable image file, got {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith(("I", "F")):
        # PIL clips 16-bit grey to white; scale its full range to 8 bits instead.
        levels = np.asarray(image, dtype=np.float64)
        return Image.fromarray((levels * (255 / max(levels.max(), 255))).astype(np.uint8)).convert(
            "RGB"
        )
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(canvas, rgba).convert("RGB")
    return image.convert("RGB")
