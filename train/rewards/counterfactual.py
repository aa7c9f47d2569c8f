"""Faithful-MR1's reinforcing reward (our reading of its abstract; METHODS.md 5).

    d_t = log π(y_t | I) − log π(y_t | I')          clamped to ±20
    κ_t = e^{−d_t} + d_t − 1                        clamped to [0, 10]
    reward = 1[correct] · Σ_t (κ_t / Σκ) · m_t      0 where Σκ = 0

I' is the image without the evidence, m_t the attention on the evidence of the row that predicts
y_t. Tokens that depend on the evidence weigh, and are paid for looking at it. Tags and the end
token carry no weight.
"""

import zlib
from dataclasses import replace
from functools import partial

import numpy as np
from jaxtyping import Float
from PIL import Image

from interp.data.images import blank, open_image
from interp.data.sample import Sample
from train.rewards.batch import Batch, Log, Written
from train.rewards.metrics import mean
from train.rewards.reading import Reading

KINDS = ("in-box", "out-of-box", "blank", "noise")
MOST_D, MOST_KAPPA = 20.0, 10.0
CONTENT = ("thinking", "answer")


class Counterfactual:
    """Attention on the evidence, weighted by what depends on it; 0 where the answer is wrong.

    Args:
        kind: the image in the picture's place: "in-box" has the boxes painted with the processor's
            mean colour, "out-of-box" everything else (the placebo), "blank" all of it, and "noise"
            is uniform noise. What out-of-box would pay is logged beside in-box.

    Raises:
        ValueError: an unknown kind.
    """

    reads_maps = True

    def __init__(self, kind: str = "in-box"):
        if kind not in KINDS:
            raise ValueError(f"expected a kind of {KINDS}, got {kind!r}")
        self.kind = kind
        self.name = "faithful" if kind != "out-of-box" else "faithful_out"

    def __call__(self, batch: Batch, log: Log) -> list[float | None]:
        """Rewards; 0 for invalid formats and wrong answers, None without boxes to paint."""
        paid = self._values(batch, self.kind, log)
        if self.kind == "in-box":
            beside = self._values(batch, "out-of-box", _silent)
            mean(log, "faithful/out_of_box", [one for one in beside if one is not None])
        return paid

    def _values(self, batch: Batch, kind: str, log: Log) -> list[float | None]:
        chosen = [k for k, one in enumerate(batch.written) if _counts(one, kind)]
        values: list[float | None] = [
            None if kind in ("in-box", "out-of-box") and one.sample.boxes is None else 0.0
            for one in batch.written
        ]
        if not chosen:
            return values
        some = [batch.written[k] for k in chosen]
        own = batch.readings(some)
        other = batch.readings(some, partial(counterfactual, batch.processor, kind=kind))
        kappas = []
        for k, mine, theirs in zip(chosen, own, other, strict=True):
            kappa = weights(mine, theirs)
            kappas.append(kappa)
            total = kappa.sum()
            values[k] = float(kappa @ mine.on_evidence / total) if total > 0 else 0.0
        mean(log, "faithful/no_weight", [one.sum() == 0 for one in kappas])
        mean(log, "faithful/at_cap", np.concatenate(kappas) >= MOST_KAPPA)
        mean(log, "faithful/on_evidence", [one.on_evidence.mean() for one in own])
        return values


def weights(own: Reading, other: Reading) -> Float[np.ndarray, " token"]:
    """κ of every token: how much of it depends on what the other image lacks.

    Args:
        own: the text with the image.
        other: the same text with the other one.
    """
    d = np.clip(own.log_likelihood - other.log_likelihood, -MOST_D, MOST_D).astype(np.float64)
    kappa = np.clip(np.exp(-d) + d - 1, 0, MOST_KAPPA)
    return kappa * np.isin(own.role, CONTENT)


def counterfactual(processor, sample: Sample, kind: str) -> Sample:
    """The sample with another image in its place, of the same size, boxes as they are.

    Args:
        processor: whose mean colour is painted.
        sample: of one image.
        kind: of `KINDS`.
    """
    image = open_image(sample.image).convert("RGB")
    empty = blank(processor, image.size)
    if kind == "noise":
        rng = np.random.default_rng(zlib.crc32(sample.id.encode()))
        changed = Image.fromarray(rng.integers(256, size=(*image.size[::-1], 3), dtype=np.uint8))
    elif kind == "blank":
        changed = empty
    else:
        inside = _inside(image.size, sample.boxes)
        pair = (empty, image) if kind == "in-box" else (image, empty)
        changed = Image.composite(*pair, inside)
    return replace(sample, image=changed)


def _inside(size: tuple[int, int], boxes: Float[np.ndarray, "box 4"]) -> Image.Image:
    """255 in every pixel that a box touches."""
    width, height = size
    mask = np.zeros((height, width), dtype=np.uint8)
    for x0, y0, x1, y1 in boxes * [width, height, width, height]:
        mask[int(np.floor(y0)) : int(np.ceil(y1)), int(np.floor(x0)) : int(np.ceil(x1))] = 255
    return Image.fromarray(mask)


def _counts(written: Written, kind: str) -> bool:
    has_boxes = written.sample.boxes is not None or kind not in ("in-box", "out-of-box")
    return written.is_well_formed and written.accuracy > 0 and has_boxes


def _silent(_name: str, _value: float) -> None:
    pass
