"""Placebos: rewards that look like the map's and know nothing of the evidence (METHODS.md 5)."""

import zlib

import numpy as np

from interp.maps.alignment import share_inside, shifts
from interp.scoring import Saliency
from train.rewards.batch import LEAST_SPREAD, Batch, Log, Part, spread_of, within_groups

PLACEBOS = ("rolled", "random", "length")


class Rolled:
    """The share of the map inside the boxes' union, moved elsewhere in the image.

    One place for each sample, drawn among all that the union can be moved to in whole cells, seeded
    by the sample's id. Of a union that cannot be moved nothing is paid, 0 for the whole group,
    which teaches nothing; how many there are is logged.

    Args:
        options: of `interp.scoring.saliencies`, the rule among them.
    """

    name = "rolled"
    reads_maps = True

    def __init__(self, **options):
        self.options = options

    def __call__(self, batch: Batch, log: Log) -> list[float | None]:
        """Shares; 0 where the format is invalid."""
        self._n_unmoved = 0
        values = [
            0.0 if found is None else self._value(found, one.sample)
            for found, one in zip(batch.saliencies(**self.options), batch.written, strict=True)
        ]
        if values:
            log("rolled/unmoved", self._n_unmoved / len(values))
        return values

    def _value(self, found, sample) -> float | None:
        if not isinstance(found, Saliency) or sample.boxes is None:
            return None
        boxes = moved(sample.boxes, found.map.shape, sample.id)
        if boxes is None:
            self._n_unmoved += 1
            return 0.0
        return share_inside(found.map.values, boxes)


def placebo_of(name: str, **options) -> Part:
    """A placebo by its name.

    Args:
        name: rolled, random or length.
        options: for the map of `Rolled`.

    Raises:
        ValueError: another name.
    """
    if name not in PLACEBOS:
        raise ValueError(f"expected a placebo of {PLACEBOS}, got {name!r}")
    return {"rolled": lambda: Rolled(**options), "random": RandomText, "length": Length}[name]()


def moved(boxes: np.ndarray, shape: tuple[int, int], seed: str) -> np.ndarray | None:
    """The boxes at another place, the same one for the same seed; None where there is none."""
    places = shifts(boxes, shape)
    if not len(places):
        return None
    rng = np.random.default_rng(zlib.crc32(seed.encode()))
    return boxes + places[rng.integers(len(places))]


class RandomText:
    """A number in [0, 1) that a hash draws for each text: the same text, the same number."""

    name = "random"
    reads_maps = False

    def __call__(self, batch: Batch, _log: Log) -> list[float | None]:
        """The numbers; 0 where the format is invalid."""
        return [
            zlib.crc32(f"{one.sample.id}\n{one.text.text}".encode()) / 2**32 * one.is_well_formed
            for one in batch.written
        ]


class Length:
    """How many tokens a text has."""

    name = "length"
    reads_maps = False

    def __call__(self, batch: Batch, _log: Log) -> list[float | None]:
        """Counts; 0 where the format is invalid."""
        return [float(len(one.text.token_ids) * one.is_well_formed) for one in batch.written]


class Scaled:
    """A placebo whose variance inside each group is that of the reward it stands for.

    Args:
        placebo: what is paid.
        like: the part whose variance it gets, which is measured and not paid.
    """

    reads_maps = True

    def __init__(self, placebo: Part, like: Part):
        self.placebo, self.like = placebo, like
        self.name = placebo.name

    def __call__(self, batch: Batch, log: Log) -> list[float | None]:
        """Values around 0 by group; 0 in a group where the placebo does not vary."""
        paid = self.placebo(batch, log)
        if getattr(self.like, "is_gated", False):  # what is not paid of the one is not of the other
            right = (one.accuracy > 0 for one in batch.written)
            paid = [v if v is None or ok else 0.0 for v, ok in zip(paid, right, strict=True)]
        own = within_groups(paid, batch)
        like = within_groups(self.like(batch, log), batch)
        for group in batch.groups():
            width, wanted = spread_of(own[group]), spread_of(like[group])
            own[group] *= wanted / width if width > LEAST_SPREAD else 0.0
        return [None if np.isnan(one) else float(one) for one in own]
