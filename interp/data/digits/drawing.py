"""Scenes of coloured handwritten digits on a canvas: what is where, and how it is drawn.

The digits are scikit-learn's 1,797 UCI images, in a fixed stratified split by image (that copy has
no writer labels); none is in both splits.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

COLORS = {
    "red": (235, 60, 50),
    "green": (60, 200, 70),
    "blue": (70, 110, 255),
    "yellow": (245, 225, 60),
    "purple": (195, 80, 235),
    "cyan": (70, 220, 230),
}
CANVASES = ((112, 112), (84, 140), (140, 84))  # height, width; multiples of 28
SLOT = 42  # least side of a slot, px
SIZES = (28, 36)  # side of a digit, px
TILT = 10  # degrees at most, either way
ROW_NAMES = {2: ("top", "bottom"), 3: ("top", "middle", "bottom")}
COLUMN_NAMES = {2: ("left", "right"), 3: ("left", "center", "right")}
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Digit:
    """One digit of a scene."""

    label: int
    glyph: int
    """Index into scikit-learn's images, of the scene's split."""
    color: str
    place: tuple[int, int]
    """Row and column of its slot."""
    where: str
    """Its slot in words, such as "top left"."""
    box: tuple[int, int, int, int]
    """(x0, y0, x1, y1) in pixels of the canvas."""
    tilt: int
    """Degrees, counter-clockwise."""


@lru_cache
def glyphs(split: str) -> dict[int, list[int]]:
    """Indices of the images of each label in a split: a fixed stratified split by image."""
    labels = load_digits().target
    parts = train_test_split(np.arange(len(labels)), test_size=0.3, stratify=labels, random_state=0)
    indices = parts[SPLITS.index(split)]
    return {label: indices[labels[indices] == label].tolist() for label in range(10)}


@lru_cache
def _images() -> np.ndarray:
    return (load_digits().images * (255 / 16)).astype(np.uint8)


@dataclass(frozen=True)
class Hand:
    """Draws random digits; what it writes comes from one split's images."""

    rng: np.random.Generator
    split: str

    def pick(self, options):
        """One of the options, all equally likely."""
        return options[int(self.rng.integers(len(options)))]

    def relabel(self, digit: Digit, taken: set[int]) -> Digit:
        """The digit with another label."""
        label = self.pick([n for n in range(10) if n not in taken])
        return replace(digit, label=label, glyph=self.pick(glyphs(self.split)[label]))

    def recolor(self, digit: Digit, taken: set[str]) -> Digit:
        """The digit in another colour."""
        return replace(digit, color=self.pick([c for c in COLORS if c not in taken]))

    def digit(self, canvas: tuple[int, int], row: int, column: int) -> Digit:
        """A random digit somewhere in a slot."""
        grid = grid_of(canvas)
        height, width = canvas[0] // grid[0], canvas[1] // grid[1]
        size = int(self.rng.integers(SIZES[0], SIZES[1] + 1))
        y = row * height + int(self.rng.integers(height - size + 1))
        x = column * width + int(self.rng.integers(width - size + 1))
        where = place_name((row, column), grid)
        tilt = int(self.rng.integers(-TILT, TILT + 1))
        blank = Digit(0, 0, "", (row, column), where, (x, y, x + size, y + size), tilt)
        return self.recolor(self.relabel(blank, set()), set())


def grid_of(canvas: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of slots of a canvas."""
    return canvas[0] // SLOT, canvas[1] // SLOT


def place_name(place: tuple[int, int], grid: tuple[int, int]) -> str:
    """A slot in words, such as "top left"."""
    return f"{ROW_NAMES[grid[0]][place[0]]} {COLUMN_NAMES[grid[1]][place[1]]}"


def scatter(hand: Hand, canvas, n_digits: int) -> tuple[Digit, ...]:
    """Random digits in different slots, in reading order; the first two drawn are neighbours."""
    rows, columns = grid_of(canvas)
    first = int(hand.rng.integers(rows)) * columns + int(hand.rng.integers(columns - 1))
    rest = hand.rng.permutation([s for s in range(rows * columns) if s not in (first, first + 1)])
    slots = sorted([first, first + 1, *rest.tolist()][:n_digits])
    return tuple(hand.digit(canvas, *divmod(slot, columns)) for slot in slots)


def background(rng, canvas) -> np.ndarray:
    """A dark, slightly uneven paper."""
    height, width = canvas
    noise = rng.standard_normal((height, width, 1), dtype=np.float32)
    return np.repeat(rng.integers(20, 50) + 3 * noise, 3, axis=2)


def draw(paper: np.ndarray, digits: tuple[Digit, ...]) -> Image.Image:
    """The digits tinted on the paper."""
    image = paper.copy()
    for digit in digits:
        x0, y0, x1, y1 = digit.box
        ink = Image.fromarray(_images()[digit.glyph]).resize((x1 - x0, y1 - y0), Image.BICUBIC)
        ink = ink.rotate(digit.tilt, Image.BILINEAR)
        alpha = np.asarray(ink, dtype=np.float32)[:, :, np.newaxis] / 255
        color = np.array(COLORS[digit.color], dtype=np.float32)
        image[y0:y1, x0:x1] += alpha * (color - image[y0:y1, x0:x1])
    return Image.fromarray(image.clip(0, 255).astype(np.uint8))
