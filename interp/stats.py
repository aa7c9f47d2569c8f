"""Means, shares and their bootstrap intervals over a named sampling unit.

An interval answers: if other images had been drawn from the same source, where would the mean lie?
So whole images are resampled, with all their targets; resampling targets would pretend that the
tokens of one answer are independent and give intervals that are too narrow.
"""

import warnings
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import xarray as xr
from scipy import stats

from interp.vocabulary import require

RESAMPLES = 10_000
CONFIDENCE = 0.95
BATCH = 2_000_000  # numbers that are resampled at a time


def mean_interval(values: xr.DataArray, *, over: str = "sample", seed: int = 0) -> xr.Dataset:
    """Mean over a dimension with its 95 % percentile bootstrap interval.

    Units of `over` without a value (NaN) are left out, and `n` counts the rest.

    Returns:
        `estimate`, `lower`, `upper` and `n`, with the remaining dimensions.
    """
    return interval((values,), _mean, over=over, seed=seed)


def share_interval(
    part: xr.DataArray, whole: xr.DataArray, *, over: str = "sample", seed: int = 0
) -> xr.Dataset:
    """Σ part / Σ whole over a dimension with its 95 % percentile bootstrap interval.

    A ratio of sums, not a mean of ratios, which single small denominators would decide.
    """
    return interval((part, whole), _share, over=over, seed=seed)


def median_interval(values: xr.DataArray, *, over: str = "sample", seed: int = 0) -> xr.Dataset:
    """Median over a dimension with its 95 % percentile bootstrap interval."""
    return interval((values,), _median, over=over, seed=seed)


def proportion_interval(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion."""
    bounds = stats.binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    return float(bounds.low), float(bounds.high)


def _mean(values, axis=-1):
    return values.mean(axis=axis)


def _median(values, axis=-1):
    return np.median(values, axis=axis)


def _share(part, whole, axis=-1):
    return part.sum(axis=axis) / whole.sum(axis=axis)


def interval(
    arrays: tuple[xr.DataArray, ...], statistic: Callable, *, over: str = "sample", seed: int = 0
) -> xr.Dataset:
    """A statistic over a dimension with its 95 % percentile bootstrap interval.

    Units of `over` in which one of the arrays is NaN are left out; cells that miss the same units
    share their resamples.

    Args:
        arrays: what the statistic takes, broadcast against each other.
        statistic: (*arrays, axis) -> array, vectorised over the other axes.
        over: the sampling unit.
        seed: of the resampling.

    Returns:
        `estimate`, `lower`, `upper` and `n`, with the remaining dimensions.
    """
    for array in arrays:
        require(array, over)
    results = xr.apply_ufunc(
        lambda *columns: _by_missing(columns, statistic, seed),
        *xr.broadcast(*arrays),
        input_core_dims=[[over]] * len(arrays),
        output_core_dims=[[], [], [], []],
    )
    names = ("estimate", "lower", "upper", "n")
    dataset = xr.Dataset(dict(zip(names, results, strict=True)))
    dataset["n"] = dataset["n"].astype(int)
    for name in names[:3]:
        dataset[name].attrs = {"units": arrays[0].attrs.get("units", "1")}
    return dataset


def _by_missing(columns, statistic, seed: int) -> tuple[np.ndarray, ...]:
    """Estimate, bounds and n of every cell; cells with the same missing units in one bootstrap."""
    shape, n_units = columns[0].shape[:-1], columns[0].shape[-1]
    flat = [np.asarray(c).reshape(-1, n_units) for c in columns]
    is_present = np.isfinite(flat).all(axis=0)
    results = np.full((4, len(is_present)), np.nan)
    patterns, which = np.unique(is_present, axis=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        cells = np.flatnonzero(which.reshape(-1) == number)
        results[:, cells] = _bootstrap([c[np.ix_(cells, pattern)] for c in flat], statistic, seed)
    return tuple(row.reshape(shape) for row in results)


def _bootstrap(columns: list[np.ndarray], statistic, seed: int) -> np.ndarray:
    """Rows estimate, lower, upper and n of cells with n present units each."""
    n_cells, n = columns[0].shape
    results = np.full((4, n_cells), np.nan)
    results[3] = n
    if n > 0:
        with np.errstate(invalid="ignore"):  # a share of nothing is NaN
            results[0] = statistic(*columns, axis=-1)
    if n > 1:
        results[1:3] = _resampled(columns, statistic, seed)
    return results


def _resampled(columns: list[np.ndarray], statistic, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Percentiles; of a statistic that is the same in every draw, NaN or that value."""
    n_cells, n = columns[0].shape
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        return stats.bootstrap(
            columns,
            statistic,
            paired=True,
            vectorized=True,
            axis=-1,
            n_resamples=RESAMPLES,
            batch=max(1, BATCH // (n * n_cells)),
            method="percentile",
            confidence_level=CONFIDENCE,
            rng=np.random.default_rng(seed),
        ).confidence_interval


def drawn_means(
    arrays: dict[str, xr.DataArray], strata: xr.DataArray, *, over: str = "sample", seed: int = 0
) -> xr.Dataset:
    """Means of every stratum in bootstrap draws that all arrays share, with dimension `draw`.

    Draw 0 is the sample itself; in the others the units of each stratum are resampled. What is NaN
    is left out of its mean. Any statistic of means, with its interval, comes from these: over
    strata as their unweighted mean, say, or a ratio (`interval_of`).

    Args:
        arrays: by name, with dimension `over`.
        strata: the stratum of each unit.
        over: the sampling unit.
        seed: of the resampling.

    Returns:
        The arrays with dimensions (stratum, draw, …) in place of `over`.
    """
    names, by_stratum = np.unique(strata.values), []
    places = [np.flatnonzero(strata.values == name) for name in names]
    counts = _resampled_counts(seed, RESAMPLES, tuple(len(one) for one in places))
    for chosen, weights in zip(places, counts, strict=True):
        own = {key: _weighted(array, over, chosen, weights) for key, array in arrays.items()}
        by_stratum.append(xr.Dataset(own))
    return xr.concat(by_stratum, dim=xr.Variable("stratum", names))


@lru_cache(maxsize=4)
def _resampled_counts(seed: int, n_draws: int, sizes: tuple[int, ...]) -> list[np.ndarray]:
    """How often each unit of each stratum is drawn: (draw, unit), once each in draw 0."""
    rng, found = np.random.default_rng(seed), []
    for n in sizes:
        drawn = rng.multinomial(n, np.full(n, 1 / n), n_draws)
        found.append(np.concatenate([np.ones((1, n)), drawn]))
    return found


def _weighted(array: xr.DataArray, over: str, chosen: np.ndarray, weights) -> xr.DataArray:
    """Weighted means of what is not NaN, with dimension `draw` in place of `over`."""
    first = array.transpose(over, ...).drop_vars(over, errors="ignore")
    values = first.values[chosen].astype(float)
    flat = values.reshape(len(chosen), -1)
    is_there = ~np.isnan(flat)
    n = weights @ is_there.astype(float)
    means = np.divide(
        weights @ np.where(is_there, flat, 0.0), n, out=np.full(n.shape, np.nan), where=n > 0
    )
    dims = ("draw", *first.dims[1:])
    coords = {name: one for name, one in first.coords.items() if over not in one.dims}
    return xr.DataArray(means.reshape(len(weights), *values.shape[1:]), coords, dims)


def interval_of(draws: xr.DataArray) -> xr.Dataset:
    """Estimate (draw 0) and 95 % percentile interval of a statistic in bootstrap draws."""
    low, high = (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
    estimate = draws.isel(draw=0, drop=True)
    at = draws.dims.index("draw")
    resampled = np.take(draws.values, np.arange(1, draws.sizes["draw"]), axis=at)
    with np.errstate(invalid="ignore"):  # a share of nothing
        lower, upper = np.quantile(resampled, [low, high], axis=at)
    return xr.Dataset(
        {
            "estimate": estimate,
            "lower": estimate.copy(data=lower),
            "upper": estimate.copy(data=upper),
        }
    )
