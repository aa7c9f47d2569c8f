"""Means, shares and their bootstrap intervals over a named sampling unit.

An interval answers: if other images had been drawn from the same source, where would the mean lie?
So whole images are resampled, with all their targets; resampling targets would pretend that the
tokens of one answer are independent and give intervals that are too narrow.
"""

import numpy as np
import xarray as xr
from scipy import stats

from interp.labels import require

RESAMPLES = 10_000
CONFIDENCE = 0.95


def mean_interval(values: xr.DataArray, *, over: str = "sample", seed: int = 0) -> xr.Dataset:
    """Mean over a dimension with its 95 % percentile bootstrap interval.

    Units of `over` without a value (NaN) are left out, and `n` counts the rest.

    Returns:
        `estimate`, `lower`, `upper` and `n`, with the remaining dimensions.
    """
    return _interval((values,), _mean, over, seed)


def share_interval(
    part: xr.DataArray, whole: xr.DataArray, *, over: str = "sample", seed: int = 0
) -> xr.Dataset:
    """Σ part / Σ whole over a dimension with its 95 % percentile bootstrap interval.

    A ratio of sums, not a mean of ratios, which single small denominators would decide.
    """
    part, whole = xr.broadcast(part, whole)
    return _interval((part, whole), _share, over, seed)


def proportion_interval(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion."""
    found = stats.binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    return float(found.low), float(found.high)


def _mean(values, axis=-1):
    return values.mean(axis=axis)


def _share(part, whole, axis=-1):
    return part.sum(axis=axis) / whole.sum(axis=axis)


def _interval(arrays: tuple[xr.DataArray, ...], statistic, over: str, seed: int) -> xr.Dataset:
    for array in arrays:
        require(array, over)

    def one(*columns):
        kept = [c[np.isfinite(columns).all(axis=0)] for c in np.asarray(columns)]
        n = len(kept[0])
        if n == 0:
            return np.nan, np.nan, np.nan, 0
        estimate = statistic(*kept)
        if n == 1:
            return estimate, np.nan, np.nan, 1
        found = stats.bootstrap(
            kept,
            statistic,
            paired=True,
            vectorized=True,
            n_resamples=RESAMPLES,
            batch=500,
            method="percentile",
            confidence_level=CONFIDENCE,
            rng=np.random.default_rng(seed),
        ).confidence_interval
        return estimate, found.low, found.high, n

    results = xr.apply_ufunc(
        one,
        *arrays,
        input_core_dims=[[over]] * len(arrays),
        output_core_dims=[[], [], [], []],
        vectorize=True,
    )
    names = ("estimate", "lower", "upper", "n")
    found = xr.Dataset(dict(zip(names, results, strict=True)))
    for name in names[:3]:
        found[name].attrs = {"units": arrays[0].attrs.get("units", "1")}
    return found
