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

import re
from dataclasses import replace
from functools import partial

import numpy as np

from interp.data.digits.drawing import CANVASES, SPLITS, Hand, background, draw, scatter
from interp.data.digits.question_families import FAMILIES, QUESTIONS
from interp.data.sample import Sample

BRIEF = "look at the image."
BRIEF_QUESTIONS = ("digit_by_color", "color_by_digit", "left_of")


def load(
    split: str,
    limit: int = 400,
    seed: int = 0,
    families: tuple[str, ...] = (),
    max_digits: int = 4,
) -> list[Sample]:
    """`limit` scenes of a split, in order."""
    scene = {"seed": seed, "families": families, "max_digits": max_digits}
    return [make_sample(split, i, **scene) for i in range(limit)]


def load_brief(split: str, limit: int = 400, seed: int = 0) -> list[Sample]:
    """`limit` scenes that ask for one digit or colour, whose texts all think `BRIEF` (METHODS 3.6).

    Such words state nothing, and are the same for image and twin.
    """
    scenes = load(split, limit, seed, BRIEF_QUESTIONS)
    brief = {"thinking": BRIEF, "dataset": "digits_brief"}
    return [replace(one, twin=replace(one.twin, **brief), **brief) for one in scenes]


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
    family, key, digits, twin_digits, paper = compose(split, index, seed, max_digits, families)
    name = f"digits-{split}-{seed}-{index:06d}"
    scene = partial(as_sample, paper=paper, split=split, family=family, key=key)
    twin = scene(f"{name}-twin", twin_digits) if with_twin else None
    return replace(scene(name, digits), twin=twin)


def at_first_glance(split: str, index: int, **scene) -> Sample:
    """`make_sample` without a twin, with the text of somebody who looked at the first digit only.

    Thinking and answer are of one piece, and wrong where that is not enough: for half of the
    scenes. Image, question and boxes are the scene's.
    """
    sample = make_sample(split, index, with_twin=False, **scene)
    settings = {"seed": 0, "max_digits": 4, "families": ()} | scene
    family, key, digits, _, _ = compose(split, index, *settings.values())
    query = family.ask(family.glance(digits, key), key)
    return replace(sample, thinking=query.thinking, answer=query.answer)


def object_boxes(sample: Sample) -> np.ndarray:
    """Boxes (k, 4) of all digits of a scene of `load`'s, asked for or not, in 0..1.

    Raises:
        ValueError: not a sample of `load` with the default settings.
    """
    match = re.fullmatch(r"digits-(\w+)-(\d+)-(\d+)", sample.id)
    if sample.dataset != "digits" or match is None:
        raise ValueError(f"expected a scene of the data set digits, got {sample.id!r}")
    _, _, digits, _, paper = compose(match[1], int(match[3]), int(match[2]), 4, ())
    height, width, _ = paper.shape
    boxes = np.array([d.box for d in digits]) / [width, height, width, height]
    if not all((boxes == box).all(axis=1).any() for box in sample.boxes):
        raise ValueError(f"{sample.id}: expected a scene made with the default settings")
    return boxes


def compose(
    split: str,
    index: int,
    seed: int,
    max_digits: int,
    families: tuple[str, ...],
    min_digits: int = 1,
):
    """Family, what it asks for, the digits, the twin's digits and the canvas.

    Raises:
        ValueError: unknown split or family.
    """
    if split not in SPLITS:
        raise ValueError(f"expected a split of {SPLITS}, got {split!r}")
    unknown = set(families) - set(FAMILIES)
    if unknown:
        raise ValueError(f"expected families of {tuple(FAMILIES)}, got {sorted(unknown)}")
    names = [f for f in families or QUESTIONS if FAMILIES[f].min_digits <= max_digits]
    if not names:
        raise ValueError(f"expected families that {max_digits} digits can ask, got {families}")
    family = FAMILIES[names[index % len(names)]]
    hand = Hand(np.random.default_rng([seed, SPLITS.index(split), index]), split)
    canvas = CANVASES[hand.rng.integers(len(CANVASES))]
    n_digits = int(hand.rng.integers(max(min_digits, family.min_digits), max_digits + 1))
    digits, key, twin_digits = family.compose(hand, scatter(hand, canvas, n_digits))
    return family, key, digits, twin_digits, background(hand.rng, canvas)


def as_sample(name, digits, *, paper, split, family, key) -> Sample:
    """One question about digits on a paper, which `compose` gives, as a sample."""
    query = family.ask(digits, key)
    height, width, _ = paper.shape
    boxes = np.array([digits[i].box for i in query.evidence], dtype=np.float64)
    return Sample(
        id=name,
        image=draw(paper, digits),
        question=query.question,
        answer=query.answer,
        thinking=query.thinking,
        boxes=boxes / [width, height, width, height],
        family=family.name,
        dataset="digits",
        split=split,
    )
