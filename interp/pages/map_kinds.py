"""Maps of one answer for a page: every kind on visual tokens or cells, with sums and shares."""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from interp.data.sample import Sample
from interp.maps.alignment import share_inside
from interp.maps.grid import arranged
from interp.pages import notes
from interp.pages.packing import exact, rounded
from interp.vocabulary import METHOD_TITLES


def map_kinds(datasets: Mapping[str, xr.Dataset], sample: Sample | None) -> list[dict]:
    """Every kind of map: its values on visual tokens, its sums, and its share inside the boxes."""
    ledger = datasets["ledger"]
    visual = np.flatnonzero(ledger["image"].values >= 0)
    if not len(visual):
        return []
    arrays = {}
    if "maps" in datasets:
        maps = datasets["maps"]
        where = _aligned(maps, ledger)
        for kind in maps["kind"].values.tolist():
            arrays[kind] = _placed(maps["map"].sel(kind=kind), where, ledger)
    arrays.setdefault("direct", by_source(ledger))
    if "pixels" in datasets:
        pixels = datasets["pixels"]
        for name in pixels["intervention"].values.tolist():
            values = pixels["total"].sel(intervention=name)
            arrays.setdefault(name, _placed(values, _aligned(pixels, ledger), ledger))
    boxes = None if sample is None else sample.boxes
    known = [name for name in notes.KINDS if name in arrays]
    found = [_kind(name, arrays[name][:, visual], ledger, boxes) for name in known]
    for kind in found:
        of = "maps" if kind["name"] == "slot" and "maps" in datasets else "pixels"
        if kind["name"] in notes.AGAINST:
            kind["reference"] = datasets[of].attrs.get("reference", "")
    return found + (_by_methods(datasets["methods"]) if "methods" in datasets else [])


def _by_methods(methods: xr.Dataset) -> list[dict]:
    """Maps of other methods, which are of cells and not of tokens."""
    found = []
    for name in methods["explainer"].values.tolist():
        values = methods["method_map"].sel(explainer=name).transpose("target", "row", "column")
        values = values.values.reshape(values.sizes["target"], -1)
        kind = {"name": name, "title": name, "is": METHOD_TITLES.get(name, name), "cells": True}
        kind |= {"is_not": notes.ANOTHER} | rounded(values)
        kind["defined"] = (~np.isnan(values).all(axis=1)).tolist()
        found.append(kind | {"sums": True, "sum": exact(np.nansum(values, axis=1)[:, None])})
    return found


def _aligned(dataset: xr.Dataset, ledger: xr.Dataset) -> list[int]:
    """Where in the ledger a dataset's targets are: maps may be of some of them."""
    known = list(
        zip(ledger["target_position"].values, ledger["target_token_id"].values, strict=True)
    )
    asked = zip(dataset["target_position"].values, dataset["target_token_id"].values, strict=True)
    return [known.index(one) for one in asked]


def _placed(values: xr.DataArray, where: list[int], ledger: xr.Dataset) -> np.ndarray:
    """Values by target and source, NaN for targets that have none."""
    spread = np.full((ledger.sizes["target"], ledger.sizes["source"]), np.nan)
    spread[where] = values.transpose("target", "source").values
    return spread


def _kind(name: str, values: np.ndarray, ledger: xr.Dataset, boxes) -> dict:
    """One kind of map over (target, visual token)."""
    title, what, limits = notes.KINDS[name]
    is_defined = ~np.isnan(values).all(axis=1)
    kind = {"name": name, "title": title, "is": what, "is_not": limits} | rounded(values)
    kind["defined"] = is_defined.tolist()
    images = ledger["image"].values[ledger["image"].values >= 0]
    sums = [np.nansum(values[:, images == one], axis=1) for one in np.unique(images)]
    kind["sums"] = name in notes.SUMMING
    kind["sum"] = exact(np.where(is_defined, np.array(sums), np.nan).T)
    if boxes is not None and len(np.unique(images)) == 1:
        kind["inside"] = exact(_inside(values, is_defined, ledger, boxes))
    return kind


def _inside(values: np.ndarray, is_defined: np.ndarray, ledger: xr.Dataset, boxes) -> np.ndarray:
    """The share of each map's positive mass inside the boxes (METHODS.md 4)."""
    is_visual = ledger["image"].values >= 0
    place = [ledger[name].values[is_visual] for name in ("view", "row", "column")]
    shares = np.full(len(values), np.nan)
    for k in np.flatnonzero(is_defined):
        grid = np.maximum(arranged(np.nan_to_num(values[k]), *place), 0)
        shares[k] = share_inside(grid.astype(np.float64), np.asarray(boxes))
    return shares


def by_source(ledger: xr.Dataset) -> np.ndarray:
    """Eq. 1 by target and source token, over all layers and heads."""
    direct = ledger["direct"]
    over = [dim for dim in direct.dims if dim not in ("target", "source")]
    return direct.sum(over).transpose("target", "source").values
