"""Scenes in which a shortcut pays: a frame around the image in the colour of the answer.

All ask what color one of the digits is. In the split "shortcut" the frame has the answer's colour
in nine scenes of ten, in "broken" it has another colour in every scene. A reward for answers alone
cannot tell who looked at the digit from who looked at the frame; broken scenes can.
"""

from dataclasses import replace
from functools import partial

import numpy as np

from interp.data.digits.drawing import COLORS
from interp.data.digits.scenes import as_sample, compose
from interp.data.sample import Sample

SPLITS = {"shortcut": "train", "broken": "test"}
"""Their digits are those of these splits."""
SHARE = 0.9
WIDTH = 1  # of the frame, px; digits lie on it where they touch


def load(split: str, limit: int = 400, seed: int = 0, max_digits: int = 4) -> list[Sample]:
    """`limit` scenes of "shortcut" or "broken", in order, each with its twin in the same frame.

    Args:
        split: one of `SPLITS`.
        limit: how many.
        seed: of the scenes.
        max_digits: in a scene; two at least.
    """
    return [_scene(split, index, seed, max_digits) for index in range(limit)]


def _scene(split: str, index: int, seed: int, max_digits: int) -> Sample:
    composed = compose(SPLITS[split], index, seed, max_digits, ("color_by_digit",), min_digits=2)
    family, key, digits, twin_digits, paper = composed
    rng = np.random.default_rng([seed, 2 + list(SPLITS).index(split), index])
    answer = family.ask(digits, key).answer
    others = [color for color in COLORS if color != answer]
    is_right = split == "shortcut" and rng.random() < SHARE
    color = answer if is_right else others[rng.integers(len(others))]
    name = f"digits-{split}-{seed}-{index:06d}"
    scene = partial(as_sample, paper=framed(paper, color), split=split, family=family, key=key)
    return replace(scene(name, digits), twin=scene(f"{name}-twin", twin_digits))


def framed(paper: np.ndarray, color: str) -> np.ndarray:
    """The paper with a frame of a colour on its edge."""
    inner = np.zeros(paper.shape[:2], dtype=bool)
    inner[WIDTH:-WIDTH, WIDTH:-WIDTH] = True
    return np.where(inner[..., np.newaxis], paper, np.array(COLORS[color], dtype=paper.dtype))
