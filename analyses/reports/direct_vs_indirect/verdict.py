"""The claim and its pre-registered verdict (METHODS.md 3.6). Needs no model.

Unit: image. P1, the direct write's Shapley value, and TE, the total effect, are averaged over an
image's targets of a token class. Primary endpoint: Δ = mean over images of P1 − (TE − P1).

*Supported* iff the lower bound of Δ is above 0 in every cell of {references that pass the gate} ×
{centered, contrast} × {live, frozen norm} × {the set, the set without its sinks}; *refuted* iff the
upper bound is below 0 in every cell; else *not shown*. A reference passes the gate if the lower
bound of the mean TE is at least 0.5 logits in both gauges and at most 10 % of images have TE ≤ 0.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from interp import measures, stats
from interp.vocabulary import PATH_CLASSES, SINKLESS

GATE = 0.5  # logit; below it a mean total effect is called "no effect" and gets no share
MOST_NEGATIVE = 0.10  # share of images with TE ≤ 0
LEAST_IMAGES = 100
LEAST_REFERENCES = 2
SETS = ("image", "evidence")
CELL = ("reference", "gauge", "norm", "sinks")


@dataclass(frozen=True)
class Judgement:
    """The verdict on one token class and source set."""

    token_class: str
    source_set: str
    decision: str
    """"supported", "refuted", "not shown" or "no effect"."""
    reason: str
    strict_decision: str
    """The same with only values, not their pattern, counted as direct."""
    passing: tuple[str, ...]
    """References that passed the gate."""


@dataclass(frozen=True)
class Verdicts:
    """All judgements and the numbers that they rest on."""

    judgements: list[Judgement]
    cells: pd.DataFrame
    """Δ and its strict reading by token_class, source_set and cell, with TE, ρ and medians."""
    gates: pd.DataFrame
    """Mean TE and share of images with TE ≤ 0 by token_class, source_set, reference and gauge."""


def judge(run: xr.Dataset, seed: int) -> Verdicts:
    """The verdicts of a run that has Shapley values."""
    image = _per_image(run)
    delta = {
        name: stats.mean_interval(2 * image[name] - image["te"], seed=seed)
        for name in ("p1", "strict")
    }
    cells = _cells(image, delta, seed)
    gates = _gates(image, seed)
    judgements = [
        _one(cells, gates, token_class, source_set)
        for token_class in measures.TOKEN_CLASSES
        for source_set in SETS
        if ((gates.token_class == token_class) & (gates.source_set == source_set)).any()
    ]
    voting = {(j.token_class, j.source_set, r) for j in judgements for r in j.passing}
    keys = zip(cells.token_class, cells.source_set, cells.reference, strict=True)
    return Verdicts(judgements, cells.assign(votes=[key in voting for key in keys]), gates)


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
        negative = (group["te"] <= 0).where(group["te"].notnull()).mean("sample", skipna=True)
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


def _gates(image: xr.Dataset, seed: int) -> pd.DataFrame:
    """One row per token class, source set, reference and gauge, under the live norm."""
    total = image["te"].sel(norm="live", sinks="with", drop=True)
    interval = stats.mean_interval(total, seed=seed)
    interval["share_negative"] = (total <= 0).where(total.notnull()).mean("sample", skipna=True)
    dims = ["token_class", "source_set", "reference", "gauge"]
    frame = interval.to_dataframe(dim_order=dims).reset_index()
    frame = frame[frame.n > 0].reset_index(drop=True)
    return frame.assign(passes=passes(frame))


def passes(totals: pd.DataFrame) -> pd.Series:
    """Whether mean total effects, given with `share_negative`, are large enough for a vote."""
    return (totals.lower >= GATE) & (totals.share_negative <= MOST_NEGATIVE)


def _one(cells: pd.DataFrame, gates: pd.DataFrame, token_class: str, source_set: str) -> Judgement:
    gate_rows = gates[(gates.token_class == token_class) & (gates.source_set == source_set)]
    by_reference = gate_rows.groupby("reference").agg(passes=("passes", "all"), n=("n", "min"))
    enough = by_reference[by_reference.n >= LEAST_IMAGES]
    passing = tuple(enough.index[enough.passes])
    of_set = (cells.token_class == token_class) & (cells.source_set == source_set)
    chosen = cells[of_set & cells.reference.isin(passing)]
    # A set that is all sinks in most images has too few cells, or images, without them.
    least = 0 if len(chosen) < 4 * len(passing) * cells.sinks.nunique() else chosen.n.min()
    if len(enough) < LEAST_REFERENCES:
        most = int(by_reference.n.max())
        reason = f"{LEAST_IMAGES} images with each of two references are needed, got {most}"
        decided = (("not shown", reason),) * 2
    elif not passing:
        reason = f"{_failures(gate_rows)}; {_without_vote(cells[of_set])}"
        decided = (("no effect", reason),) * 2
    elif len(passing) < LEAST_REFERENCES:
        reason = f"only the reference {passing[0]} passes the gate, two are needed"
        decided = (("not shown", reason),) * 2
    elif least < LEAST_IMAGES:
        reason = f"without its sinks the set is there in {int(least)} of {LEAST_IMAGES} images"
        decided = (("not shown", reason),) * 2
    else:
        decided = decide(chosen, "delta"), decide(chosen, "strict_delta")
    (decision, reason), (strict, _) = decided
    return Judgement(token_class, source_set, decision, reason, strict, passing)


def _failures(gates: pd.DataFrame) -> str:
    """By which part of the gate each reference fails."""
    reasons = []
    for reference, rows in gates.groupby("reference", sort=False):
        low, negative = rows.lower.min(), rows.share_negative.max()
        if rows.n.min() < LEAST_IMAGES:
            reasons.append(f"{reference} ({rows.n.min()} of {LEAST_IMAGES} images)")
        elif low < GATE:
            reasons.append(f"{reference} (mean TE may be as low as {low:.2f} logits)")
        else:
            reasons.append(f"{reference} (TE ≤ 0 in {100 * negative:.0f} % of images)")
    return ", ".join(reasons)


def _without_vote(cells: pd.DataFrame) -> str:
    """The intervals' reading without a vote, for information."""
    below, above = int((cells.delta_upper < 0).sum()), int((cells.delta_lower > 0).sum())
    return (
        f"for information, without a vote: Δ is below 0 in {below} and above 0 in {above} of "
        f"{len(cells)} cells"
    )


def decide(cells: pd.DataFrame, name: str) -> tuple[str, str]:
    """The decision that the intervals of all cells give, and why."""
    above, below = cells[f"{name}_lower"] > 0, cells[f"{name}_upper"] < 0
    if above.all():
        return "supported", f"Δ is above 0 in all {len(cells)} cells"
    if below.all():
        return "refuted", f"Δ is below 0 in all {len(cells)} cells"
    if above.any() or below.any():
        larger, word = (above, "above") if above.sum() >= below.sum() else (below, "below")
        others = cells[~larger]
        named = "; ".join(cell_name(row) for _, row in others.iterrows())
        return "not shown", (
            f"Δ is {word} 0 in {int(larger.sum())} of {len(cells)} cells, not in: {named}"
        )
    return "not shown", f"Δ does not differ from 0 in any of {len(cells)} cells"


def cell_name(cell) -> str:
    """A cell in words: reference, gauge, norm, and whether it is without sinks."""
    end = ", no sinks" if cell["sinks"] == "without" else ""
    return f"{cell['reference']}, {cell['gauge']}, {cell['norm']}{end}"
