"""Bars, intervals, lines and points: one labelled array → one Axes."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from interp.plots.style import CLASS_COLORS, CLASS_MARKERS, PATH_COLORS, plain_logarithms
from interp.vocabulary import PATH_TITLES, require


def path_means(interval: xr.Dataset, ax: Axes) -> Axes:
    """Mean effect by path, one group per source set, with intervals.

    Args:
        interval: estimate, lower, upper over (source_set, path), `path` with "total" first.
    """
    _bars(interval, ax, "source_set", "path")
    ax.set(xlabel="Source set that the row cannot read", ylabel="Mean effect [logit]")
    return ax


def paths(effects: pd.Series, ax: Axes) -> Axes:
    """One effect by path with its total, as bars with their numbers.

    Args:
        effects: in logits, by path, "total" among them.
    """
    names = ["total", *(name for name in effects.index if name != "total")]
    values = effects.loc[names]
    ax.barh(range(len(names)), values, color=[PATH_COLORS[name] for name in names])
    titles = ["in all", *(PATH_TITLES[name] for name in names[1:])]
    numbers = [f"{value:+.2f}".replace("-", "−") for value in values]
    titles = [f"{title}  {number}" for title, number in zip(titles, numbers, strict=True)]
    ax.set_yticks(range(len(names)), titles)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.axvline(0, color="0.3", linewidth=0.8)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("[logit]")
    return ax


def node_means(interval: xr.Dataset, ax: Axes) -> Axes:
    """Mean node effect by path, one group per reference, with intervals.

    Args:
        interval: estimate, lower, upper over (reference, node_path), "total" first.
    """
    _bars(interval, ax, "reference", "node_path")
    ax.set(xlabel="What the image is replaced by", ylabel="Mean effect [logit]")
    return ax


def class_means(interval: xr.Dataset, ax: Axes) -> Axes:
    """Mean Shapley value by path class, one group per reference, with intervals.

    Args:
        interval: estimate, lower, upper over (reference, path_class).
    """
    _bars(interval, ax, "reference", "path_class")
    ax.set(xlabel="What the image is replaced by", ylabel="Mean Shapley value [logit]")
    return ax


def _bars(interval: xr.Dataset, ax: Axes, group: str, bar: str) -> None:
    require(interval["estimate"], group, bar)
    groups, bars = interval[group].values, interval[bar].values
    width = 0.8 / len(bars)
    for k, name in enumerate(bars):
        series = interval.sel({bar: name})
        at = np.arange(len(groups)) + (k - (len(bars) - 1) / 2) * width
        errors = np.abs(np.stack([series["lower"], series["upper"]]) - series["estimate"].values)
        title = "total effect" if name == "total" else PATH_TITLES.get(str(name), str(name))
        color = (PATH_COLORS | CLASS_COLORS)[str(name)]
        ax.bar(at, series["estimate"], width, color=color, label=title)
        ax.errorbar(
            at, series["estimate"], errors, fmt="none", ecolor="0.25", elinewidth=0.8, capsize=1.5
        )
    ax.axhline(0, color="0.3", linewidth=0.8)
    ax.set_xticks(np.arange(len(groups)), groups)
    ax.grid(axis="x", visible=False)


READINGS = (
    ("delta", "#D55E00", "o", "pattern and values direct"),
    ("strict_delta", "#0072B2", "^", "strict: values alone direct"),
)


def margins(cells: pd.DataFrame, ax: Axes) -> Axes:
    """Δ of every cell with its interval, and its strict reading beside it.

    Args:
        cells: rows with label, delta, delta_lower, delta_upper, and the same for strict_delta.
    """
    at = np.arange(len(cells))
    for k, (name, color, marker, _) in enumerate(READINGS):
        errors = np.abs(cells[[f"{name}_lower", f"{name}_upper"]].sub(cells[name], axis=0))
        ax.errorbar(
            cells[name],
            at + (k - 0.5) * 0.3,
            xerr=errors.to_numpy().T,
            fmt=marker,
            color=color,
            markersize=4,
            capsize=2,
        )
    ax.axvline(0, color="0.3", linewidth=1)
    ax.set_yticks(at, cells["label"])
    ax.set_ylim(len(cells) - 0.5, -0.5)
    ax.set_xlabel("Δ = the path minus everything else [logit]")
    return ax


def margin_legend() -> tuple[list[Line2D], list[str]]:
    """Handles and names for a legend of `margins`."""
    handles = [Line2D([], [], color=c, marker=m, markersize=4) for _, c, m, _ in READINGS]
    return handles, [title for *_, title in READINGS]


def shares(interval: xr.Dataset, ax: Axes) -> Axes:
    """Direct share by source set and token class, with intervals; where it is missing, a word why.

    Args:
        interval: estimate, lower, upper over (source_set, token_class); `reading`, if it has that,
            is what stands in place of a missing share, and "no share" otherwise.
    """
    require(interval["estimate"], "source_set", "token_class")
    if "reading" not in interval:
        interval = interval.assign(reading=xr.full_like(interval["estimate"], "no share", "U8"))
    sets = interval["source_set"].values
    for k, token_class in enumerate(interval["token_class"].values):
        series = interval.sel(token_class=token_class)
        color, marker = CLASS_MARKERS[str(token_class)]
        at = np.arange(len(sets)) + (k - 0.5) * 0.25
        errors = np.abs(np.stack([series["lower"], series["upper"]]) - series["estimate"].values)
        ax.errorbar(
            series["estimate"],
            at,
            xerr=errors,
            fmt=marker,
            color=color,
            capsize=3,
            label=f"{token_class} tokens",
        )
        is_missing = np.isnan(series["estimate"].values)
        for y, word in zip(at[is_missing], series["reading"].values[is_missing], strict=True):
            ax.annotate(str(word), (0.01, y), color=color, fontsize=7, va="center", alpha=0.8)
    for x, style in ((0, "-"), (0.5, ":"), (1, "-")):
        ax.axvline(x, color="0.4", linewidth=0.9, linestyle=style)
    ax.set_yticks(np.arange(len(sets)), sets)
    ax.set_ylim(len(sets) - 0.5, -0.5)
    ax.set(xlabel="Direct share of the total effect, Σ direct / Σ total", ylabel="Source set")
    return ax


def by_layer(interval: xr.Dataset, ax: Axes) -> Axes:
    """Mean effect by layer, one line per path, with intervals.

    Args:
        interval: estimate, lower, upper over (layer, layer_path).
    """
    require(interval["estimate"], "layer", "layer_path")
    for path in interval["layer_path"].values:
        series = interval.sel(layer_path=path)
        color = PATH_COLORS[str(path)]
        ax.plot(
            series["layer"],
            series["estimate"],
            marker="o",
            markersize=3,
            color=color,
            label=PATH_TITLES[str(path)],
        )
        ax.fill_between(
            series["layer"], series["lower"], series["upper"], color=color, alpha=0.2, linewidth=0
        )
    ax.axhline(0, color="0.3", linewidth=0.8)
    ax.set(xlabel="Layer (0 = first)", ylabel="Mean effect [logit]")
    ax.set_xticks(interval["layer"].values[:: max(1, interval.sizes["layer"] // 12)])
    return ax


def direct_against_total(points: Mapping[str, xr.Dataset], ax: Axes) -> Axes:
    """Scatter of the direct part against the total effect, one point per target.

    Args:
        points: per token class a dataset with `direct` and `total` over target.
    """
    low, high = 0.0, 0.0
    for token_class, dataset in points.items():
        require(dataset["direct"], "target")
        color, marker = CLASS_MARKERS[token_class]
        ax.scatter(
            dataset["total"],
            dataset["direct"],
            s=9,
            alpha=0.45,
            color=color,
            marker=marker,
            linewidths=0,
            label=f"{token_class} tokens (n = {dataset.sizes['target']})",
        )
        low = min(low, float(dataset["total"].min()), float(dataset["direct"].min()))
        high = max(high, float(dataset["total"].max()), float(dataset["direct"].max()))
    line = np.array([low, high])
    ax.plot(line, line, color="0.2", linewidth=1, label="all of it direct")
    ax.plot(line, line / 2, color="0.2", linewidth=1, linestyle=":", label="half of it direct")
    ax.axhline(0, color="0.6", linewidth=0.7)
    ax.axvline(0, color="0.6", linewidth=0.7)
    ax.set(xlabel="Total effect of the image [logit]", ylabel="Direct part (Eq. 1) [logit]")
    return ax


def errors(dataset: xr.Dataset, ax: Axes, bound: float) -> Axes:
    """Cumulative distribution of relative errors, with their bound; zeros stand at 1e-9.

    Args:
        dataset: as `interp.measures.relative_errors`.
        bound: for the run's dtype.
    """
    styles = {"ledger": "-", "effects": "--", "replay": ":", "nodes": "-.", "shapley": (0, (1, 3))}
    colors = {
        "ledger": "#D55E00",
        "effects": "#0072B2",
        "replay": "#009E73",
        "nodes": "#E69F00",
        "shapley": "#000000",
    }
    for name, array in dataset.items():
        values = np.sort(array.values)
        shares_below = np.arange(1, len(values) + 1) / len(values)
        ax.step(
            np.maximum(values, 1e-9),
            shares_below,
            where="post",
            color=colors[str(name)],
            linestyle=styles[str(name)],
            label=str(name),
        )
    ax.axvline(bound, color="0.2", linewidth=1)
    ax.annotate(f"bound {bound:g}", (bound, 0.5), rotation=90, ha="right", va="center", fontsize=8)
    ax.set_xscale("log")
    plain_logarithms(ax.xaxis)
    ax.set(xlabel="|error| / sum of absolute parts", ylabel="Share of targets", ylim=(0, 1.02))
    return ax
