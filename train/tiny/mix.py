"""The mix of scenes that the embedded model is trained on, a function of a row's index.

A row is a function of its index, so a resumed run sees exactly the rows it would have seen.
"""

from dataclasses import dataclass, replace

import numpy as np

from interp.data.digits import scenes as digits
from interp.data.sample import Sample


@dataclass(frozen=True)
class Mix:
    """Which scenes to train on, in which order."""

    n_samples: int
    seed: int
    stages: tuple[float, ...]
    """Shares of the rows at which the most digits in a scene rises to 2, 3, 4."""
    families: tuple[str, ...]
    """They take turns; a name that stands twice comes twice as often."""
    reading: float
    """Share of the rows, from the first, of which every second only asks to read the digits."""
    careless: float = 0.0
    """Share of the rows whose text is that of somebody who looked at the first digit only."""
    thinking: str = ""
    """All texts say this before their answer, in place of their own thinking."""

    def scene(self, index: int) -> Sample:
        """The training scene of a row."""
        sample = self._scene(index)
        return replace(sample, thinking=self.thinking) if self.thinking else sample

    def _scene(self, index: int) -> Sample:
        max_digits = 1 + sum(index >= share * self.n_samples for share in self.stages)
        in_reading = index < self.reading * self.n_samples
        possible = [f for f in self.families if digits.FAMILIES[f].min_digits <= max_digits]
        turn = index // 2 if in_reading else index
        family = "read" if in_reading and index % 2 else possible[turn % len(possible)]
        scene = {"seed": self.seed, "max_digits": max_digits, "families": (family,)}
        if np.random.default_rng([self.seed, index]).random() < self.careless:
            return digits.at_first_glance("train", index, **scene)
        return digits.make_sample("train", index, with_twin=False, **scene)
