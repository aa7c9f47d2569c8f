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

from dataclasses import replace
from functools import partial

import numpy as np

from interp.data.families import FAMILIES, QUESTIONS
from interp.data.scene import CANVASES, SPLITS, Hand, background, draw, scatter
from interp.sample import Sample


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
    if not names:
        raise ValueError(f"expected families that {max_digits} digits can ask, got {families}")
    family = FAMILIES[names[index % len(names)]]
    hand = Hand(np.random.default_rng([seed, SPLITS.index(split), index]), split)
    canvas = CANVASES[hand.rng.integers(len(CANVASES))]
    n_digits = int(hand.rng.integers(family.min_digits, max_digits + 1))
    digits, key, twin_digits = family.compose(hand, scatter(hand, canvas, n_digits))
    paper = background(hand.rng, canvas)
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
        image=draw(paper, digits),
        question=query.question,
        answer=query.answer,
        thinking=query.thinking,
        boxes=boxes / [width, height, width, height],
        family=family.name,
        dataset="digits",
        split=split,
    )
