"""Intervals over seeds and images, which every seed shares: both are resampled, crossed."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float

RESAMPLES = 10_000
CONFIDENCE = 0.95
Statistic = Callable[
    [Float[np.ndarray, "draw image"]],
    Float[np.ndarray, "draw seed"],
]
"""From how often each image counts to a number for each seed."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval, and how often a draw is on 0's other side."""

    estimate: float
    lower: float
    upper: float
    p: float
    """Two-sided, at least 2 / (draws + 1)."""
    seeds: tuple[float, ...]
    """The estimate of each seed by itself."""


def crossed(statistic: Statistic, strata: np.ndarray, n_seeds: int, seed: int = 0) -> Interval:
    """Mean over seeds of a statistic of images, seeds and images resampled.

    Images are drawn within their stratum. A mean over n seeds that are drawn from the n at hand
    varies by (n − 1)/n of what it should: their deviations are stretched by √(n/(n − 1)).

    Args:
        statistic: of weights; it is given all draws at once.
        strata: of each image.
        n_seeds: how many numbers it gives for a draw.
        seed: of the resampling.
    """
    values = statistic(_weights(tuple(strata.tolist()), seed, RESAMPLES))
    means = values.mean(axis=1)
    counts = _weights((0,) * n_seeds, seed + 1, RESAMPLES)[1:]
    stretch = np.sqrt(n_seeds / (n_seeds - 1)) if n_seeds > 1 else 1.0
    deviations = (counts * values[1:]).sum(axis=1) / n_seeds - means[1:]
    draws = means[1:] + stretch * deviations
    low, high = (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
    lower, upper = np.quantile(draws, [low, high])
    beyond = min((~(draws > 0)).sum(), (~(draws < 0)).sum())  # NaN is on either side
    p = min(1.0, 2 * (beyond + 1) / (RESAMPLES + 1))
    return Interval(float(means[0]), float(lower), float(upper), float(p), tuple(values[0]))


@lru_cache(maxsize=8)
def _weights(strata: tuple, seed: int, n_draws: int) -> Float[np.ndarray, "draw image"]:
    """How often each image counts: once each, then in every draw."""
    rng, of = np.random.default_rng(seed), np.array(strata)
    weights = np.ones((1 + n_draws, len(of)))
    for stratum in np.unique(of):
        here = np.flatnonzero(of == stratum)
        drawn = rng.multinomial(len(here), np.full(len(here), 1 / len(here)), n_draws)
        weights[1:, here] = drawn
    return weights


def share_of(part: Float[np.ndarray, "seed image"], whole: Float[np.ndarray, "seed image"]):
    """Σ part / Σ whole over images, by seed, as a `Statistic`; no share of what is not above 0."""
    both = np.concatenate([part, whole]).T

    def shares(weights):
        parts, wholes = np.split(weights @ both, 2, axis=1)
        return np.divide(parts, wholes, out=np.full(parts.shape, np.nan), where=wholes > 0)

    return shares


def gap(one: Statistic, other: Statistic) -> Statistic:
    """One minus the other, seed by seed, on the same images."""
    return lambda weights: one(weights) - other(weights)
