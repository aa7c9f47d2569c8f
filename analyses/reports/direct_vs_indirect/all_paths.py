"""A run with all paths → the numbers of the report beyond edge effects. Needs no model."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from analyses.reports.direct_vs_indirect import cells
from analyses.reports.direct_vs_indirect.rule import GATE
from interp import measures, stats

COLUMNS = (
    "token_class",
    "visual_set",
    "reference",
    "measure",
    "pair",
    "path_class",
    "node_path",
    "write",
    "role",
    "norm",
    "gauge",
)


@dataclass(frozen=True)
class Indirect:
    """Order-free shares, node effects and what puts them in proportion."""

    cells: pd.DataFrame
    """Δ, TE and shares by token class, source set and cell; exploratory, see `cells`."""
    classes: xr.Dataset
    """Mean Shapley value by (token_class, visual_set, reference, path_class, norm, gauge)."""
    nodes: xr.Dataset
    """Mean node effect by (token_class, visual_set, reference, node_path), "total" first."""
    roles: xr.Dataset
    """Mean mediated effect of the image by (token_class, reference, role)."""
    modes: pd.DataFrame
    """The image's edge effect by token_class and mode: total, Σ direct / Σ total, and how total and
    direct part differ from those of the mode "zero"."""
    families: pd.DataFrame | None
    """TE, Δ and share by kind of question; exploratory, and None where there are no kinds."""
    natural: xr.Dataset
    """Natural effects by (token_class, visual_set, reference, norm, gauge, measure)."""
    pairs: xr.Dataset
    """Shapley interactions of two path classes, likewise by pair."""
    writes: xr.Dataset
    """The direct write's Shapley value under the frozen norm, by values and pattern."""
    origins: pd.DataFrame
    """Direct contribution of the image by origin, and its share of their sum, by token_class."""
    agreement: pd.DataFrame
    """Rank and sign agreement of maps with exact patch effects, and slope and R² of first order."""
    masses: pd.DataFrame
    """Signed sum, masses and cancellation of the direct map, and its share on sinks."""
    controls: pd.DataFrame | None
    """Mean total effect of each control, by reference and gauge."""
    pixels: pd.DataFrame | None
    """Pixels painted, vectors and slots swapped: agreement, border share and effects."""


def find(run: xr.Dataset, seed: int) -> Indirect | None:
    """All of it, or None for a run of edge effects alone."""
    if "shapley" not in run:
        return None
    effect, total = (measures.per_image(run, name) for name in ("node_effect", "node_total"))
    nodes = xr.concat([total.expand_dims(node_path=["total"]), effect], dim="node_path")
    roles = measures.per_image(run, "mediated_by_role").sel(visual_set="image", drop=True)
    return Indirect(
        cells=cells.find(run, seed),
        classes=stats.mean_interval(measures.per_image(run, "shapley"), seed=seed),
        nodes=stats.mean_interval(nodes, seed=seed),
        roles=stats.mean_interval(roles, seed=seed),
        modes=_modes(run, seed),
        families=cells.by_family(run, seed) if (run["family"] != "").all() else None,
        natural=_natural(run, seed),
        pairs=stats.mean_interval(measures.per_image(run, "pair_interaction"), seed=seed),
        writes=stats.mean_interval(measures.per_image(run, "direct_write"), seed=seed),
        origins=_origins(run, seed),
        agreement=_agreement(run, seed),
        masses=_masses(run, seed),
        controls=_controls(run.attrs.get("controls"), seed),
        pixels=_pixels(run.attrs.get("pixels"), seed),
    )


NATURAL = ("pnde", "tnde", "pnie", "tnie", "interaction")


def _natural(run: xr.Dataset, seed: int) -> xr.Dataset:
    named = xr.Variable("measure", list(NATURAL))
    values = xr.concat([measures.per_image(run, name) for name in NATURAL], dim=named)
    return stats.mean_interval(values, seed=seed)


def _modes(run: xr.Dataset, seed: int) -> pd.DataFrame:
    total, direct = (
        measures.per_image(run, name).sel(source_set="image", drop=True)
        for name in ("mode_total", "mode_direct")
    )
    columns = {
        "total": stats.mean_interval(total, seed=seed),
        "share": stats.share_interval(direct, total, seed=seed),
        "total_change": stats.mean_interval(total - total.sel(mode="zero"), seed=seed),
        "direct_change": stats.mean_interval(direct - direct.sel(mode="zero"), seed=seed),
    }
    ends = {"estimate": "", "lower": "_lower", "upper": "_upper"}
    merged = xr.merge(
        [
            found[list(ends)].rename({key: f"{name}{end}" for key, end in ends.items()})
            for name, found in columns.items()
        ]
        + [columns["total"]["n"]],
        combine_attrs="drop",
    )
    frame = merged.to_dataframe(dim_order=["token_class", "mode"]).reset_index()
    return frame[frame.n > 0].reset_index(drop=True)


def _row(interval: xr.Dataset, **labels) -> dict:
    names = ("estimate", "lower", "upper", "n")
    return labels | {name: float(interval[name]) for name in names}


def _agreement(run: xr.Dataset, seed: int) -> pd.DataFrame:
    """One row per token class, measure, map and exact effect."""
    rows = []
    for name in ("rank", "sign"):
        interval = stats.mean_interval(measures.mean_over_targets(run, run[name]), seed=seed)
        for keys, cell in interval.stack(cell=("token_class", "map", "exact")).groupby("cell"):
            labels = dict(zip(("token_class", "map", "exact"), keys, strict=True))
            if keys[1:] == ("first_order_map", "patch_slot"):
                continue  # first order knows neither keys nor content, only the cut of an edge
            rows.append(_row(cell.squeeze(), measure=name, **labels))
    products = {
        name: measures.mean_over_targets(run, run[f"map_{name}"]) for name in ("xy", "xx", "yy")
    }
    slope = stats.share_interval(products["xy"], products["xx"], seed=seed)
    fit = stats.interval(
        tuple(products[name] for name in ("xy", "xx", "yy")), _r_squared, seed=seed
    )
    for name, interval in (("slope", slope), ("R² through the origin", fit)):
        for token_class in interval["token_class"].values:
            labels = {"token_class": token_class, "map": "first_order_map", "exact": "patch_edge"}
            rows.append(_row(interval.sel(token_class=token_class), measure=name, **labels))
    error = np.abs(run["completeness_error"]).where(run["has_patch"]) / run["magnitude"]
    interval = stats.mean_interval(100 * measures.mean_over_targets(run, error), seed=seed)
    for token_class in interval["token_class"].values:
        labels = {"token_class": token_class, "map": "first_order_map", "exact": "joint_edge"}
        rows.append(
            _row(interval.sel(token_class=token_class), measure="completeness error", **labels)
        )
    frame = pd.DataFrame(rows)
    return frame[frame.n > 0].reset_index(drop=True)


def _origins(run: xr.Dataset, seed: int) -> pd.DataFrame:
    origins = measures.per_image(run, "image_by_origin")
    mean = stats.mean_interval(origins, seed=seed)
    share = stats.share_interval(origins, origins.sum("origin", skipna=False), seed=seed)
    ends = {name: f"share_{name}" for name in ("estimate", "lower", "upper")}
    intervals = mean.merge(share[list(ends)].rename(ends))
    frame = intervals.to_dataframe(dim_order=["token_class", "origin"]).reset_index()
    return frame[frame.n > 0].reset_index(drop=True)


def _r_squared(xy, xx, yy, axis=-1):
    """R² of a regression through the origin."""
    return xy.sum(axis=axis) ** 2 / (xx.sum(axis=axis) * yy.sum(axis=axis))


def _masses(run: xr.Dataset, seed: int) -> pd.DataFrame:
    rows = []
    for name in measures.MASSES:
        interval = stats.mean_interval(measures.mean_over_targets(run, run[name]), seed=seed)
        for token_class in interval["token_class"].values:
            group = interval.sel(token_class=token_class)
            for factor in group["factor"].values if "factor" in group.dims else [None]:
                cell = group if factor is None else group.sel(factor=factor)
                label = str(name) if factor is None else f"{name} {factor}"
                rows.append(_row(cell, token_class=token_class, measure=label))
    frame = pd.DataFrame(rows)
    return frame[frame.n > 0].reset_index(drop=True)


def _controls(records: list[dict] | None, seed: int) -> pd.DataFrame | None:
    """Mean total effect by control, reference and gauge, and whether it is as it should be.

    Random weights must not pass the verdict's gate, which takes both gauges; the others must have a
    mean total effect in the contrast gauge that is not above 0 (the interval's lower bound is not).
    """
    if not records:
        return None
    rows, keys = [], ["control", "reference", "gauge"]
    for labels, group in pd.DataFrame(records).groupby(keys, sort=False):
        values = xr.DataArray(group.total.to_numpy(), dims="sample")
        row = _row(stats.mean_interval(values, seed=seed), **dict(zip(keys, labels, strict=True)))
        rows.append(row | {"share_negative": float((group.total < -GATE).mean())})
    frame = pd.DataFrame(rows)
    frame["passes"] = cells.passes(frame)
    gated = frame.groupby(["control", "reference"])["passes"].transform("all")
    is_random = frame.control == "random weights"
    holds = (~gated).where(is_random, frame.lower <= 0).astype(object)
    frame["holds"] = holds.where(is_random | (frame.gauge == "contrast"), None)
    frame.loc[frame.lower.isna(), "holds"] = None  # one image has no interval
    return frame.drop(columns="passes")


def _pixels(records: list[dict] | None, seed: int) -> pd.DataFrame | None:
    """One row per measure and intervention: painted pixels, swapped vectors, swapped slots."""
    if not records:
        return None
    found = pd.DataFrame(records)
    rows = []
    for measure in found.columns.drop(["sample", "intervention"]):
        for intervention, group in found.groupby("intervention", sort=False):
            values = xr.DataArray(group[measure].to_numpy(), dims="sample")
            interval = stats.mean_interval(values, seed=seed)
            rows.append(_row(interval, measure=measure, intervention=intervention))
    return pd.DataFrame(rows)


def tables(indirect: Indirect) -> dict[str, pd.DataFrame]:
    """Every table by file name."""
    dims = {
        "path_classes": indirect.classes,
        "node_effects": indirect.nodes,
        "mediated_roles": indirect.roles,
        "natural_effects": indirect.natural,
        "interactions": indirect.pairs,
        "direct_writes": indirect.writes,
    }
    frames = {
        name: one.to_dataframe(dim_order=[d for d in COLUMNS if d in one.dims]).reset_index()
        for name, one in dims.items()
    }
    frames = {name: frame[frame.n > 0].reset_index(drop=True) for name, frame in frames.items()}
    frames |= {
        "cells": indirect.cells,
        "modes": indirect.modes,
        "origins": indirect.origins,
        "map_agreement": indirect.agreement,
        "masses": indirect.masses,
    }
    optional = {"controls": indirect.controls, "families": indirect.families}
    optional["pixels"] = indirect.pixels
    return frames | {name: frame for name, frame in optional.items() if frame is not None}
