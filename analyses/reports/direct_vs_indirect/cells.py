"""Every cell of the first game (METHODS.md 3.3 and 3.6) on the report's own scenes; exploratory.

Unit: image. P1, the direct write's Shapley value, and TE, the total effect, are averaged over an
image's targets of a token class; Δ = mean over images of P1 − (TE − P1). The verdict is another
file's work, on other scenes: `judging`.
"""

import numpy as np
import pandas as pd
import xarray as xr

from analyses.reports.direct_vs_indirect.rule import GATE, MOST_NEGATIVE
from interp import measures, stats
from interp.vocabulary import PATH_CLASSES, SINKLESS

SETS = ("image", "evidence")
CELL = ("reference", "gauge", "norm", "sinks")


def find(run: xr.Dataset, seed: int) -> pd.DataFrame:
    """Δ and its strict reading by token_class, source_set and cell, with TE, shares and medians."""
    image = _per_image(run)
    delta = {
        name: stats.mean_interval(2 * image[name] - image["te"], seed=seed)
        for name in ("p1", "strict")
    }
    return _cells(image, delta, seed)


def _per_image(run: xr.Dataset) -> xr.Dataset:
    """P1, its strict reading and TE, (token_class, sample, source_set, sinks, reference, …)."""
    of_class = {"path_class": PATH_CLASSES[0], "drop": True}
    values = xr.Dataset(
        {
            "te": measures.per_image(run, "shapley_total"),
            "p1": measures.per_image(run, "shapley").sel(**of_class),
            "strict": measures.per_image(run, "shapley_strict").sel(**of_class),
        }
    )
    # Where no token is a sink, a set without its sinks is no second cell but the same again.
    ends = {"with": "", "without": SINKLESS} if bool(run["n_sinks"].any()) else {"with": ""}
    by_sinks = [
        values.sel(visual_set=[name + end for name in SETS]).assign_coords(visual_set=list(SETS))
        for end in ends.values()
    ]
    joined = xr.concat(by_sinks, dim=xr.Variable("sinks", list(ends)))
    return joined.rename(visual_set="source_set")


def by_family(run: xr.Dataset, seed: int) -> pd.DataFrame:
    """TE, Δ and P1's share for answer tokens and the image by kind of question (exploratory).

    Under the live norm, with sinks; one row per family, reference and gauge.
    """
    cell = {"token_class": "answer", "source_set": "image", "norm": "live", "sinks": "with"}
    image = _per_image(run).sel(cell, drop=True)
    rows = []
    for family, group in image.groupby(run["family"]):
        intervals = {
            "te": stats.mean_interval(group["te"], seed=seed),
            "delta": stats.mean_interval(2 * group["p1"] - group["te"], seed=seed),
            "share": stats.share_interval(group["p1"], group["te"], seed=seed),
        }
        negative = (group["te"] < -GATE).where(group["te"].notnull()).mean("sample", skipna=True)
        for reference in group["reference"].values:
            for gauge in group["gauge"].values:
                at = {"reference": reference, "gauge": gauge}
                row = {"family": str(family), **at, "n": int(intervals["te"]["n"].sel(at))}
                row["share_negative"] = float(negative.sel(at))
                for name, interval in intervals.items():
                    for end, column in (("estimate", ""), ("lower", "_lower"), ("upper", "_upper")):
                        row[name + column] = float(interval[end].sel(at))
                rows.append(row)
    return pd.DataFrame(rows)


def _cells(image: xr.Dataset, delta: dict[str, xr.Dataset], seed: int) -> pd.DataFrame:
    """One row per token class, source set and cell."""
    ratio = stats.share_interval(image["p1"], image["te"], seed=seed)
    size = np.abs(image["te"])
    weighted = stats.share_interval(image["p1"] * np.sign(image["te"]), size, seed=seed)
    median = stats.median_interval((image["p1"] / image["te"]).where(size > 0), seed=seed)
    strict_ratio = stats.share_interval(image["strict"], image["te"], seed=seed)
    total = stats.mean_interval(image["te"], seed=seed)
    columns = {
        "delta": delta["p1"],
        "strict_delta": delta["strict"],
        "te": total,
        "share": ratio,
        "strict_share": strict_ratio,
        "weighted_share": weighted,
        "median_share": median,
    }
    merged = xr.merge(
        [
            one[["estimate", "lower", "upper"]].rename(
                estimate=name, lower=f"{name}_lower", upper=f"{name}_upper"
            )
            for name, one in columns.items()
        ]
        + [delta["p1"]["n"]],
        join="exact",
        compat="override",
        combine_attrs="drop",
    )
    frame = merged.to_dataframe(dim_order=["token_class", "source_set", *CELL]).reset_index()
    return frame[frame.n > 0].reset_index(drop=True)


def passes(totals: pd.DataFrame) -> pd.Series:
    """Whether mean total effects, given with `share_negative`, pass the rule's gate."""
    return (totals.lower >= GATE) & (totals.share_negative <= MOST_NEGATIVE)
