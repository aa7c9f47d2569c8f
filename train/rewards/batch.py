"""The batch that the parts of a reward read: completions, and the policy's maps of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Protocol

import numpy as np
from jaxtyping import Float

from interp.data.sample import Sample
from interp.inputs.completions import Completion
from interp.scoring import Saliency

Log = Callable[[str, float], None]
LEAST_SPREAD = 1e-6
"""A part that varies less inside a group is constant there."""


@dataclass(frozen=True)
class Written:
    """A completion that can be rewarded, and what is known of it before any part is asked."""

    number: int
    """Which of the completions that were sampled."""
    sample: Sample
    text: Completion
    is_well_formed: bool
    accuracy: float
    """The judge's verdict."""
    group: int = 0
    """Completions of one prompt have one number."""


@dataclass
class Batch:
    """Completions side by side; every map is made once, however many parts read it."""

    written: Sequence[Written]
    make: Callable[..., list[Saliency | str]]
    """From some of them, and options of `interp.scoring.saliencies`, to their maps."""
    read: Callable[..., list] | None = None
    """From some of them, and what changes a sample, to `train.rewards.reading.Reading`s."""
    processor: object = None
    _made: dict = field(default_factory=dict)

    def saliencies(self, **options) -> list[Saliency | str | None]:
        """The policy's map of each completion, or why there is none; None for invalid formats."""
        key = tuple(sorted(options.items()))
        if key not in self._made:
            well_formed = [k for k, one in enumerate(self.written) if one.is_well_formed]
            found = self.make([self.written[k] for k in well_formed], **options)
            by_number = dict(zip(well_formed, found, strict=True)) if well_formed else {}
            self._made[key] = [by_number.get(k) for k in range(len(self.written))]
        return self._made[key]

    def readings(
        self, written: Sequence[Written], change: Callable[[Sample], Sample] | None = None
    ) -> list:
        """How the policy reads some of the completions, behind a changed image if asked.

        Args:
            written: which.
            change: from a sample to one with another image.
        """
        assert self.read is not None, "a batch of the reward has a policy"
        return self.read(written, change)

    def groups(self) -> Iterator[list[int]]:
        """Numbers of the completions of each prompt, which stand side by side."""
        numbered = enumerate(one.group for one in self.written)
        for _, group in groupby(numbered, key=lambda pair: pair[1]):
            yield [k for k, _ in group]


class Part(Protocol):
    """One term of a reward."""

    name: str
    """In the trainer's log."""
    reads_maps: bool
    """Whether it asks the batch for maps."""

    def __call__(self, batch: Batch, log: Log) -> list[float | None]:
        """A number for each completion, None where it is not known; logs what else it sees."""
        ...


def within_groups(values: Sequence[float | None], batch: Batch) -> Float[np.ndarray, " completion"]:
    """Values minus the mean of their group; NaN where there is none."""
    centred = np.array([np.nan if one is None else one for one in values], dtype=float)
    for group in batch.groups():
        known = np.isfinite(centred[group])
        centred[group] -= centred[group][known].mean() if known.any() else 0.0
    return centred


def spread_of(centred: Float[np.ndarray, " completion"]) -> float:
    """The standard deviation of centred values, of those that are known; 0 without any."""
    known = centred[np.isfinite(centred)]
    return float(np.sqrt(np.mean(known**2))) if len(known) else 0.0
