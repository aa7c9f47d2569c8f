"""A run of maps → tables with intervals over images. Needs no model."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from interp import stats
from interp.measures import normalised

# Does the direct path suffice? Beside Eq. 1 stand maps with the indirect paths at the target's own
# row (its FFNs, later layers, pattern), and occlusion, which has all paths; beside the heuristic
# way through the thinking, the one that the network can execute.
PAIRS = (
    ("direct (Eq. 1)", "first order, integrated"),
    ("direct (Eq. 1)", "exact edge"),
    ("direct (Eq. 1)", "exact slot"),
    ("direct (Eq. 1)", "occlusion"),
    ("bottleneck (Saliency-R1)", "two hops"),
)
CONTROLS = {
    "alignment": "alignment",
    "chance": "boxes' area (chance)",
    "alignment_shuffled": "boxes elsewhere",
    "alignment_center": "centred rectangle",
    "border_share": "border cells' share",
    "border_area": "border cells' area",
}


@dataclass(frozen=True)
class MapFindings:
    """Tables of a run; every number with its interval."""

    run: xr.Dataset
    scores: pd.DataFrame
    """Normalised log-likelihood by method, text, change and share, as in Table 1."""
    ranking: pd.DataFrame
    """The same, mean over the shares of pixels, best deletion of the answer first."""
    agreement: pd.DataFrame
    """Mean rank agreement with each exact map."""
    alignment: pd.DataFrame | None
    """Mass on the evidence with its controls; None without boxes."""
    costs: pd.DataFrame
    """Median seconds and extra memory of a map, and the time as a ratio to the cheapest."""
    excess: pd.DataFrame | None
    """Mass on the asked object beyond chance, of trained and of random weights."""
    pairs: pd.DataFrame
    """Paired differences, second map minus first, and what they cost."""


def find(run: xr.Dataset) -> MapFindings:
    """All tables of a run."""
    return MapFindings(
        run=run,
        scores=_scores(run),
        ranking=_ranking(run),
        agreement=_table(run, run["agreement"], ["explainer", "exact"]),
        alignment=_alignment(run),
        costs=_costs(run),
        excess=_excess(run),
        pairs=_pairs(run),
    )


def _table(run: xr.Dataset, values: xr.DataArray, by: list[str]) -> pd.DataFrame:
    """Mean with interval over images, one row per combination of `by`."""
    return _rows(stats.mean_interval(values, seed=run.attrs["seed"]), by)


def _rows(interval: xr.Dataset, by: list[str]) -> pd.DataFrame:
    return (
        interval.drop_attrs()
        .to_dataframe(dim_order=by)
        .reset_index()
        .rename(columns={"explainer": "method"})
    )


def _scores(run: xr.Dataset) -> pd.DataFrame:
    part, whole = normalised(run)
    interval = stats.share_interval(part, whole, seed=run.attrs["seed"])
    return _rows(interval, ["text", "explainer", "change", "share"])


def _ranking(run: xr.Dataset) -> pd.DataFrame:
    part, whole = (one.mean("share") for one in normalised(run))
    interval = stats.share_interval(part, whole, seed=run.attrs["seed"])
    rows = _rows(interval, ["text", "explainer", "change"])
    first = rows.query("text == 'answer' and change == 'deletion'").sort_values("estimate")
    order = {method: place for place, method in enumerate(first["method"])}
    return rows.sort_values("method", key=lambda names: names.map(order), kind="stable")


def _alignment(run: xr.Dataset) -> pd.DataFrame | None:
    if "alignment" not in run:
        return None
    scores = xr.concat(
        [run[name].rename("score") for name in CONTROLS],
        pd.Index(list(CONTROLS.values()), name="score_of"),
    )
    return _table(run, scores, ["explainer", "score_of"])


def _costs(run: xr.Dataset) -> pd.DataFrame:
    seed = run.attrs["seed"]
    median = stats.median_interval(run["seconds"], seed=seed)
    rows = _rows(median, ["explainer"])
    memory = stats.median_interval(run["extra_bytes"] / 2**20, seed=seed)
    n_empty = (~run["has_mass"].astype(bool)).sum("sample")
    cheapest = float(median["estimate"].sel(explainer=_cheapest(median)))
    return rows.assign(
        ratio=rows["estimate"] / cheapest,
        cheapest=_cheapest(median),
        n_empty=n_empty.values,
        memory=memory["estimate"].values,
        memory_lower=memory["lower"].values,
        memory_upper=memory["upper"].values,
    )


def _cheapest(median: xr.Dataset) -> str:
    """The cheapest method that runs the model."""
    names = median["explainer"].values.tolist()
    candidates = [name for name in names if name != "random"] or names
    return str(candidates[int(np.argmin(median["estimate"].sel(explainer=candidates).values))])


def _excess(run: xr.Dataset) -> pd.DataFrame | None:
    if not np.isfinite(run["asked_excess"]).any():
        return None
    return _table(run, run["asked_excess"], ["explainer", "weights"])


def _pairs(run: xr.Dataset) -> pd.DataFrame:
    """Second minus first by image: faithfulness of the answer, agreement, mass, time."""
    part, whole = (one.sel(text="answer").mean("share") for one in normalised(run))
    rows, seed = [], run.attrs["seed"]
    for first, second in PAIRS:
        if not {first, second} <= set(run["explainer"].values.tolist()):
            continue
        for change, better in (("deletion", "less"), ("insertion", "more")):
            gap = _difference(part.sel(change=change), first, second)
            scale = whole.sel(change=change, explainer=first, drop=True)
            interval = stats.share_interval(gap, scale, seed=seed)
            rows.append(
                _pair_row(first, second, f"{change}, answer ({better} is better)", interval)
            )
        measures = {}
        if second != "occlusion":
            agreement = run["agreement"].sel(exact="occlusion")
            measures["rank agreement with occlusion"] = agreement
        if "alignment" in run:
            measures["mass on the evidence"] = run["alignment"]
        for name, values in measures.items():
            interval = stats.mean_interval(_difference(values, first, second), seed=seed)
            rows.append(_pair_row(first, second, name, interval))
        ratio = run["seconds"].sel(explainer=second) / run["seconds"].sel(explainer=first)
        interval = stats.median_interval(ratio.drop_vars("explainer", errors="ignore"), seed=seed)
        rows.append(_pair_row(first, second, "time, median ratio", interval))
    columns = ["first", "second", "measure", "estimate", "lower", "upper", "n"]
    return pd.DataFrame(rows, columns=columns)


def _difference(values: xr.DataArray, first: str, second: str) -> xr.DataArray:
    return values.sel(explainer=second, drop=True) - values.sel(explainer=first, drop=True)


def _pair_row(first: str, second: str, measure: str, interval: xr.Dataset) -> dict:
    numbers = {name: float(interval[name]) for name in ("estimate", "lower", "upper")}
    return {
        "first": first,
        "second": second,
        "measure": measure,
        **numbers,
        "n": int(interval["n"]),
    }
