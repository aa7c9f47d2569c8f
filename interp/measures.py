"""Per-image statistics on a run's labelled arrays; averages and intervals are `stats`' work."""

import numpy as np
import xarray as xr
from scipy import stats

from interp.vocabulary import require

TOKEN_CLASSES = ("answer", "thinking")
SINK_FACTORS = (10, 20, 40)
MAPS = ("direct", "first_order_map")
MASSES = ("signed_sum", "positive_mass", "negative_mass", "cancellation", "on_sinks")
EXACT = ("patch_edge", "patch_slot")


def per_image(run: xr.Dataset, name: str) -> xr.DataArray:
    """A variable with dimension target, averaged over the targets of each image and token class.

    Targets for which a source set or a reference is not defined are left out; an image without any
    keeps NaN.

    Returns:
        Dimensions (token_class, sample, …).
    """
    array = run[name]
    for dim, mask in (("source_set", "is_defined"), ("visual_set", "node_defined")):
        if dim in array.dims:
            array = array.where(run[mask])
    return mean_over_targets(run, array)


def mean_over_targets(run: xr.Dataset, array: xr.DataArray) -> xr.DataArray:
    """An array over the run's targets, averaged over those of each image and token class.

    NaN is left out; an image without any value keeps NaN.

    Returns:
        Dimensions (token_class, sample, …).
    """
    require(array, "target")
    names = run["sample"].values
    place = {name: k for k, name in enumerate(names.tolist())}
    which = np.array([place[name] for name in run["target_sample"].values.tolist()], dtype=int)
    rest = [dim for dim in array.dims if dim != "target"]
    values = array.transpose("target", *rest).values
    classes = [
        _means(values[of_class], which[of_class], len(names))
        for of_class in (run["target_role"].values == name for name in TOKEN_CLASSES)
    ]
    coords = {dim: array.coords[dim] for dim in rest if dim in array.coords}
    return xr.DataArray(
        np.stack(classes),
        dims=("token_class", "sample", *rest),
        coords={"token_class": list(TOKEN_CLASSES), "sample": names, **coords},
        attrs=array.attrs,
        name=array.name,
    )


def _means(values: np.ndarray, which: np.ndarray, n_groups: int) -> np.ndarray:
    """Means over the first axis by group, of what is no NaN; NaN where a group has nothing."""
    is_there = ~np.isnan(values)
    totals = np.zeros((2, n_groups, *values.shape[1:]))
    np.add.at(totals[0], which, np.where(is_there, values, 0))
    np.add.at(totals[1], which, is_there)
    dtype = np.result_type(values.dtype, np.float32)
    with np.errstate(invalid="ignore"):
        return (totals[0] / totals[1]).astype(dtype)


def relative_errors(run: xr.Dataset) -> xr.Dataset:
    """How exact the run is: |error| over the sum of absolute parts of the logit, per target.

    `ledger` is the remainder of METHODS.md 2, `replay` the drift between replay and prefill,
    `effects`, `nodes` and `shapley` the worst cell's total minus the sum of its paths or classes; a
    Shapley total is also held against the node effect's, which comes from other replays.
    """
    gap = (run["total"] - run["effect"].sum("path", skipna=False)).where(run["is_defined"], 0)
    errors = xr.Dataset(
        {
            "ledger": np.abs(run["remainder"]) / run["magnitude"],
            "replay": np.abs(run["replay_drift"]) / run["magnitude"],
            "effects": np.abs(gap).max("source_set") / run["magnitude"],
        }
    )
    if "shapley" in run:
        nodes = run["node_total"] - run["node_effect"].sum("node_path", skipna=False)
        shares = run["shapley_total"] - run["shapley"].sum("path_class", skipna=False)
        if run.attrs["gauge"] == "centered":
            difference = run["shapley_total"].sel(norm="live", gauge="centered") - run["node_total"]
            shares = np.maximum(np.abs(shares), np.abs(difference))
        for name, gaps in (("nodes", nodes), ("shapley", shares)):
            rest = [dim for dim in gaps.dims if dim != "target"]
            errors[name] = np.abs(gaps).max(rest) / run["magnitude"]
    for array in errors.values():
        array.attrs = {"units": "1", "long_name": "Error relative to the sum of absolute parts"}
    return errors


def map_agreement(run: xr.Dataset) -> xr.Dataset:
    """How far maps agree with exact patch effects, per target that has them (METHODS.md 3.6).

    Over a target's visual tokens: `rank`, Spearman's correlation, and `sign`, the share of tokens
    with the same sign in both; NaN where there is no exact map. Dimensions (target, map, exact).
    """
    require(run["patch_edge"], "target", "source")
    sample = {name: k for k, name in enumerate(run["sample"].values)}
    is_visual = run["image"].values >= 0
    agreement = np.full((2, run.sizes["target"], len(MAPS), len(EXACT)), np.nan)
    arrays = {name: run[name].values for name in (*MAPS, *EXACT)}
    for target in np.flatnonzero(run["has_patch"].values):
        at = is_visual[sample[run["target_sample"].values[target]]]
        for i, name in enumerate(MAPS):
            for j, exact in enumerate(EXACT):
                map_values, exact_values = arrays[name][target, at], arrays[exact][target, at]
                if np.ptp(map_values) > 0 and np.ptp(exact_values) > 0:
                    agreement[0, target, i, j] = stats.spearmanr(map_values, exact_values).statistic
                    agreement[1, target, i, j] = (
                        np.sign(map_values) == np.sign(exact_values)
                    ).mean()
    dims = ("target", "map", "exact")
    coords = {"map": list(MAPS), "exact": list(EXACT), "target_role": run["target_role"]}
    coords["target_sample"] = run["target_sample"]
    variables = {"rank": (dims, agreement[0]), "sign": (dims, agreement[1])}
    dataset = xr.Dataset(variables, coords=coords)
    for array in dataset.values():
        array.attrs = {"units": "1"}
    return dataset


def masses(run: xr.Dataset) -> xr.Dataset:
    """Signed sum, positive and negative mass and cancellation of the direct map (METHODS.md 2.2).

    At one level: direct contributions of single visual tokens, layers and heads summed. The
    cancellation index is 1 − |Σ| / Σ|·|. Also `on_sinks`, the sum of |·| on sinks over that on all
    visual tokens, by `factor`, the threshold of max|h| / rms(h).
    """
    require(run["direct"], "target", "source")
    sample = {name: k for k, name in enumerate(run["sample"].values)}
    rows = [sample[name] for name in run["target_sample"].values]
    direct = np.where(run["image"].values[rows] >= 0, run["direct"].values, 0)
    positive, negative = np.clip(direct, 0, None).sum(1), np.clip(direct, None, 0).sum(1)
    size = positive - negative
    peak = run["peak"].values[rows]
    on_sinks = [np.where(peak > factor, np.abs(direct), 0).sum(1) for factor in SINK_FACTORS]
    with np.errstate(invalid="ignore", divide="ignore"):
        cancelled = 1 - np.abs(direct.sum(1)) / size
        share = np.stack(on_sinks, axis=1) / size[:, np.newaxis]
    dataset = xr.Dataset(
        {
            "signed_sum": ("target", direct.sum(1), {"units": "logit"}),
            "positive_mass": ("target", positive, {"units": "logit"}),
            "negative_mass": ("target", negative, {"units": "logit"}),
            "cancellation": ("target", cancelled, {"units": "1"}),
            "on_sinks": (("target", "factor"), share, {"units": "1"}),
        },
        coords={"factor": list(SINK_FACTORS)},
    )
    return dataset.assign_coords({n: run[n] for n in ("target_role", "target_sample")})


def of_sources(run: xr.Dataset) -> xr.Dataset:
    """Numbers per target and per sample that reports read off a run's source tokens.

    `map_agreement`, `masses`, the products of a map and an exact one that a regression needs, and
    per sample how many tokens there are, how many are sinks, the largest max|h| / rms(h), and which
    share of its boxes' area the evidence tokens cover (NaN without boxes).
    """
    is_token = run["source_role"] != "padding"
    area = run["box_overlap"].where(run["source_role"] == "image", 0).sum("source")
    covered = run["box_overlap"].where(run["is_evidence"], 0).sum("source")
    parts = [masses(run)]
    if "patch_edge" in run:
        x, y = run["first_order_map"], run["patch_edge"]
        products = {
            f"map_{name}": product.sum("source").where(run["has_patch"])
            for name, product in (("xy", x * y), ("xx", x * x), ("yy", y * y))
        }
        parts += [map_agreement(run), xr.Dataset(products)]
    by_sample = {
        "n_sources": is_token.sum("source"),
        "n_sinks": run["is_sink"].sum("source"),
        "largest_peak": run["peak"].max("source"),
        "box_share": (covered / area).where(area > 0),
    }
    return xr.merge([*parts, xr.Dataset(by_sample)], join="exact", compat="equals")


def condensed(run: xr.Dataset) -> xr.Dataset:
    """A run without its source tokens; `of_sources` stands in their place."""
    return run.merge(of_sources(run)).drop_dims("source")


def with_sources(run: xr.Dataset) -> xr.Dataset:
    """A run of any detail with `of_sources` in it, and direct contributions by token at most."""
    if "source" not in run.dims:
        return run
    over = [dim for dim in ("layer", "head") if dim in run["direct"].dims]
    run = run.assign(direct=run["direct"].sum(over)) if over else run
    return run.merge(of_sources(run))


def normalised(scores: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray]:
    """Log-likelihoods above the blank image: of the changed image, and of the original, by sample.

    100 × Σ first / Σ second over samples is Table 1's score; single images with nearly no
    difference would decide a mean of ratios.
    """
    part = 100 * (scores["log_likelihood"] - scores["of_blank"])
    return part, (scores["of_original"] - scores["of_blank"]).broadcast_like(part)
