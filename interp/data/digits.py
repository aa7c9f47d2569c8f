"""The embedded data: scenes of real handwritten digits, with evidence, thinking text and twins.

A scene puts one to four coloured digits from scikit-learn's 1,797 UCI digit images into the slots
of a square or non-square canvas and asks one question of five families:

    digit_by_color  which digit is red?                 the thinking names the place
    color_by_digit  what color is the 7?                the thinking names the place
    left_of         which digit is just left of the 3?  the thinking names both places
    count           how many digits are blue?           the thinking lists the places
    sum             what is the red digit plus …?       the thinking names both digits

(and, on request, of a sixth: *read*, which digits are there, an exercise for training)

In *count* and *sum* the thinking carries an intermediate result that fixes the answer; in the
others the answer has to come from the image. Every scene has a counterfactual twin: one attribute
of the evidence changed, so that the answer changes. All is a function of (seed, split, index).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from interp.sample import Sample

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


@dataclass(frozen=True)
class Query:
    """What a family asks of a scene, and the reference text."""

    question: str
    thinking: str
    answer: str
    evidence: tuple[int, ...]
    """Indices of the digits that decide the answer."""


def load(split: str, limit: int = 400, seed: int = 0, families: tuple[str, ...] = (), **scene):
    """`limit` scenes of a split, in order; `scene` takes `max_digits`."""
    return [make_sample(split, i, seed=seed, families=families, **scene) for i in range(limit)]


def make_sample(
    split: str,
    index: int,
    *,
    seed: int = 0,
    max_digits: int = 4,
    families: tuple[str, ...] = (),
    with_twin: bool = True,
) -> Sample:
    """The scene number `index` of a split with its twin; families take turns.

    Raises:
        ValueError: unknown split or family.
    """
    if split not in SPLITS:
        raise ValueError(f"expected a split of {SPLITS}, got {split!r}")
    unknown = set(families) - set(FAMILIES)
    if unknown:
        raise ValueError(f"expected families of {tuple(FAMILIES)}, got {sorted(unknown)}")
    names = [f for f in families or QUESTIONS if FAMILIES[f].min_digits <= max_digits]
    family = FAMILIES[names[index % len(names)]]
    hand = Hand(np.random.default_rng([seed, SPLITS.index(split), index]), split)
    canvas = CANVASES[hand.rng.integers(len(CANVASES))]
    n_digits = int(hand.rng.integers(family.min_digits, max_digits + 1))
    digits, key, twin_digits = family.compose(hand, _scatter(hand, canvas, n_digits))
    paper = _background(hand.rng, canvas)
    name = f"digits-{split}-{seed}-{index:06d}"
    scene = partial(_sample, paper=paper, split=split, family=family, key=key)
    twin = scene(f"{name}-twin", twin_digits) if with_twin else None
    return replace(scene(name, digits), twin=twin)


def _sample(name, digits, *, paper, split, family, key) -> Sample:
    query = family.ask(digits, key)
    height, width, _ = paper.shape
    boxes = np.array([digits[i].box for i in query.evidence], dtype=np.float64)
    return Sample(
        id=name,
        image=_draw(paper, digits),
        question=query.question,
        answer=query.answer,
        thinking=query.thinking,
        boxes=boxes / [width, height, width, height],
        family=family.name,
        dataset="digits",
        split=split,
    )


# ------------------------------------------------------------------------------------- the scene


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


def _scatter(hand: Hand, canvas, n_digits: int) -> tuple[Digit, ...]:
    """Random digits in different slots, in reading order; the first two drawn are neighbours."""
    rows, columns = grid_of(canvas)
    first = int(hand.rng.integers(rows)) * columns + int(hand.rng.integers(columns - 1))
    rest = hand.rng.permutation([s for s in range(rows * columns) if s not in (first, first + 1)])
    slots = sorted([first, first + 1, *rest.tolist()][:n_digits])
    return tuple(hand.digit(canvas, *divmod(slot, columns)) for slot in slots)


def _background(rng, canvas) -> np.ndarray:
    height, width = canvas
    noise = rng.standard_normal((height, width, 1), dtype=np.float32)
    return np.repeat(rng.integers(20, 50) + 3 * noise, 3, axis=2)


def _draw(paper: np.ndarray, digits) -> Image.Image:
    image = paper.copy()
    for digit in digits:
        x0, y0, x1, y1 = digit.box
        ink = Image.fromarray(_images()[digit.glyph]).resize((x1 - x0, y1 - y0), Image.BICUBIC)
        ink = ink.rotate(digit.tilt, Image.BILINEAR)
        alpha = np.asarray(ink, dtype=np.float32)[:, :, np.newaxis] / 255
        color = np.array(COLORS[digit.color], dtype=np.float32)
        image[y0:y1, x0:x1] += alpha * (color - image[y0:y1, x0:x1])
    return Image.fromarray(image.clip(0, 255).astype(np.uint8))


# ---------------------------------------------------------------------------------- the families
# `compose` adapts random digits until the question has one answer and makes the twin's digits;
# `ask` reads question and reference text off the digits, and sees nothing else.


def _swap(digits: tuple[Digit, ...], index: int, digit: Digit) -> tuple[Digit, ...]:
    return (*digits[:index], digit, *digits[index + 1 :])


def _unique_colors(hand, digits, chosen) -> tuple[Digit, ...]:
    """The chosen digits get colours that nothing else in the scene has."""
    taken = set()
    for i in chosen:
        digits = _swap(digits, i, hand.recolor(digits[i], taken))
        taken.add(digits[i].color)
    for i in set(range(len(digits))) - set(chosen):
        if digits[i].color in taken:
            digits = _swap(digits, i, hand.recolor(digits[i], taken))
    return digits


def _unique_label(hand, digits, chosen: int) -> tuple[Digit, ...]:
    label = digits[chosen].label
    for i, digit in enumerate(digits):
        if i != chosen and digit.label == label:
            digits = _swap(digits, i, hand.relabel(digit, {label}))
    return digits


def _compose_digit_by_color(hand, digits):
    i = int(hand.rng.integers(len(digits)))
    digits = _unique_colors(hand, digits, [i])
    twin = _swap(digits, i, hand.relabel(digits[i], {digits[i].label}))
    return digits, digits[i].color, twin


def _ask_digit_by_color(digits, color) -> Query:
    (i,) = (i for i, d in enumerate(digits) if d.color == color)
    thinking = f"the {color} digit is at the {digits[i].where}."
    return Query(f"which digit is {color}?", thinking, str(digits[i].label), (i,))


def _compose_color_by_digit(hand, digits):
    i = int(hand.rng.integers(len(digits)))
    digits = _unique_label(hand, digits, i)
    twin = _swap(digits, i, hand.recolor(digits[i], {digits[i].color}))
    return digits, digits[i].label, twin


def _ask_color_by_digit(digits, label) -> Query:
    (i,) = (i for i, d in enumerate(digits) if d.label == label)
    thinking = f"the {label} is at the {digits[i].where}."
    return Query(f"what color is the {label}?", thinking, digits[i].color, (i,))


def _is_left(left: Digit, right: Digit) -> bool:
    return right.place == (left.place[0], left.place[1] + 1)


def _compose_left_of(hand, digits):
    pairs = [i for i in range(len(digits) - 1) if _is_left(digits[i], digits[i + 1])]
    i = hand.pick(pairs)
    digits = _unique_label(hand, digits, i + 1)
    label = digits[i + 1].label
    twin = _swap(digits, i, hand.relabel(digits[i], {digits[i].label, label}))
    return digits, label, twin


def _ask_left_of(digits, label) -> Query:
    (j,) = (j for j, d in enumerate(digits) if d.label == label)
    (i,) = (i for i, d in enumerate(digits) if _is_left(d, digits[j]))
    thinking = f"the {label} is at the {digits[j].where}. left of it is the {digits[i].where}."
    question = f"which digit is just left of the {label}?"
    return Query(question, thinking, str(digits[i].label), (i, j))


def _compose_count(hand, digits):
    color = hand.pick(list(COLORS))
    order = [int(i) for i in hand.rng.permutation(len(digits))]
    n_asked = int(hand.rng.integers(1, len(digits) + 1))
    for rank, i in enumerate(order):
        if rank < n_asked:
            digits = _swap(digits, i, replace(digits[i], color=color))
        elif digits[i].color == color:
            digits = _swap(digits, i, hand.recolor(digits[i], {color}))
    fewer = n_asked == len(digits) or (n_asked > 1 and hand.rng.random() < 0.5)
    i = order[0] if fewer else order[-1]
    changed = hand.recolor(digits[i], {color}) if fewer else replace(digits[i], color=color)
    return digits, color, _swap(digits, i, changed)


def _ask_count(digits, color) -> Query:
    found = tuple(i for i, d in enumerate(digits) if d.color == color)
    thinking = f"{color} digits are at: {', '.join(digits[i].where for i in found)}."
    return Query(f"how many digits are {color}?", thinking, str(len(found)), found)


def _compose_sum(hand, digits):
    i, j = (int(k) for k in hand.rng.permutation(len(digits))[:2])
    digits = _unique_colors(hand, digits, [i, j])
    twin = _swap(digits, i, hand.relabel(digits[i], {digits[i].label}))
    return digits, (digits[i].color, digits[j].color), twin


def _ask_sum(digits, colors) -> Query:
    i, j = (next(k for k, d in enumerate(digits) if d.color == color) for color in colors)
    first, second = digits[i].label, digits[j].label
    thinking = f"the {colors[0]} digit is {first}. the {colors[1]} digit is {second}."
    question = f"what is the {colors[0]} digit plus the {colors[1]} digit?"
    return Query(question, thinking, str(first + second), (i, j))


def _compose_read(hand, digits):
    i = int(hand.rng.integers(len(digits)))
    return digits, None, _swap(digits, i, hand.relabel(digits[i], {digits[i].label}))


def _ask_read(digits, _) -> Query:
    labels = ", ".join(str(d.label) for d in digits)
    thinking = f"there are {len(digits)} digits."
    return Query("which digits are there?", thinking, labels, tuple(range(len(digits))))


@dataclass(frozen=True)
class Family:
    """A kind of question."""

    name: str
    min_digits: int
    compose: Callable
    """(hand, digits) -> digits with one answer, the question's key, the twin's digits."""
    ask: Callable
    """(digits, key) -> Query."""


FAMILIES = {
    family.name: family
    for family in (
        Family("read", 1, _compose_read, _ask_read),
        Family("digit_by_color", 1, _compose_digit_by_color, _ask_digit_by_color),
        Family("color_by_digit", 1, _compose_color_by_digit, _ask_color_by_digit),
        Family("left_of", 2, _compose_left_of, _ask_left_of),
        Family("count", 2, _compose_count, _ask_count),
        Family("sum", 2, _compose_sum, _ask_sum),
    )
}
QUESTIONS = tuple(name for name in FAMILIES if name != "read")
