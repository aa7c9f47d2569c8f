"""Datasets of one answer → what a page shows of it, as plain lists and packed arrays."""

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from io import BytesIO

import numpy as np
import xarray as xr

from interp.data.images import open_image
from interp.data.sample import Sample, at_hand
from interp.maps.alignment import chance, share_inside
from interp.maps.grid import arranged
from interp.maps.map import whose_text
from interp.pages import notes
from interp.pages.packing import exact, rounded
from interp.pages.path_graph import as_graph
from interp.vocabulary import EDGE_PATHS, METHOD_TITLES, PATH_TITLES, PLAYERS

LONGEST_SIDE = 640
"""Pixels of a picture on a page."""
TELLING = {
    "maps": ("map",),
    "ledger": ("embed", "direct"),
    "effects": ("effect_by_layer", "total"),
    "heads": ("head_direct",),
    "alternatives": ("likely_token_id",),
    "pixels": ("set_total",),
    "methods": ("method_map",),
    "words": ("words_owen",),
    "node_effects": ("mediated_alone",),
}
"""Variables that tell which call a dataset is of; several datasets of effects go by their order,
the second being that of single tokens."""


@dataclass(frozen=True)
class Answer:
    """One text of one model, as a page shows it."""

    datasets: Mapping[str, xr.Dataset]
    """By the names of `TELLING`, and `edges`."""
    name: str = ""
    sample: Sample | None = None
    """Whose images and boxes are drawn; without it patches are drawn on grey."""
    chosen: Iterable[int] = field(default=())
    """Targets of which the first is chosen when the page opens; the answer's first by default."""
    image: int = 0
    """Which of several images the page opens with."""
    left_out: tuple[str, ...] = ()
    """Sentences on what is not on the page."""


def named(datasets: Mapping[str, xr.Dataset] | Iterable[xr.Dataset]) -> dict[str, xr.Dataset]:
    """Datasets of one answer by the call that they are of.

    Raises:
        ValueError: something that is no dataset of `interp.extract`, two of one call, no ledger, a
            ledger without source tokens, or datasets of different texts.
    """
    found: dict[str, xr.Dataset] = {}
    for one in datasets.values() if isinstance(datasets, Mapping) else datasets:
        has = set(one.data_vars) if isinstance(one, xr.Dataset) else set()
        kinds = [name for name, telling in TELLING.items() if set(telling) <= has]
        if not kinds:
            got = sorted(map(str, has))[:4] if has else type(one).__name__
            raise ValueError(f"expected datasets of interp.extract, got one of {got}")
        kind = "edges" if kinds[0] == "effects" and "effects" in found else kinds[0]
        if kind in found:
            raise ValueError(f"expected one dataset of {kind} for each answer, got two")
        found[kind] = one
    if "ledger" not in found or "source" not in found["ledger"]["direct"].dims:
        raise ValueError(
            'expected a ledger of detail "full" or "tokens" among the datasets, got '
            f"{sorted(found) or 'none'}; interp.extract.ledger(vlm, sample) makes one"
        )
    _check_same_text(found)
    return found


def _check_same_text(found: dict[str, xr.Dataset]) -> None:
    own = found["ledger"]
    for name, one in found.items():
        if "target_position" not in one.coords or "source" not in one.coords:
            continue
        same = one.sizes["source"] == own.sizes["source"]
        if not same or (one["source_token_id"].values != own["source_token_id"].values).any():
            raise ValueError(
                f"expected datasets of one text, got {name} of another than the ledger"
            )


def shown(answer: Answer) -> dict:
    """Everything that the script needs of one answer, as JSON has it."""
    datasets = answer.datasets
    ledger = datasets["ledger"]
    sample = answer.sample or at_hand(ledger.attrs.get("data_hash", ""))
    targets = _targets(datasets)
    result = {
        "name": answer.name or _name(ledger.attrs),
        "question": sample.question if sample is not None else "",
        "whose": whose_text(ledger.attrs),
        "gauge": ledger.attrs.get("gauge", ""),
        "facts": {key: str(value) for key, value in ledger.attrs.items() if str(value)},
        "images": _images(ledger, sample),
        "tokens": _text(ledger),
        "targets": targets,
        "start": _start(ledger, answer.chosen),
        "image": answer.image,
        "left_out": list(answer.left_out),
        "quantities": _quantities(datasets),
        "kinds": _kinds(datasets, sample),
        "ledger": _ledger(ledger),
        "sources": _sources(ledger),
    }
    for name, make in OPTIONAL.items():
        if name in datasets:
            result[name] = make(datasets[name], ledger)
    if "edges" in datasets:
        result["graph"] = as_graph(datasets)
        if "node_effects" in datasets:
            result["graph"]["reference"] = datasets["node_effects"].attrs.get("reference", "")
    return result


def _name(attributes: Mapping) -> str:
    adapter = attributes.get("adapter", "")
    return str(attributes.get("model", "")) + (f" + {adapter}" if adapter else "")


def _start(ledger: xr.Dataset, chosen: Iterable[int]) -> int:
    of_answer = np.flatnonzero(ledger["target_role"].values == "answer").tolist()
    return next(iter([*chosen, *of_answer, ledger.sizes["target"] - 1]))


def _targets(datasets: Mapping[str, xr.Dataset]) -> list[dict]:
    """Each target's token, with its probability and those of the likeliest tokens there."""
    ledger, others = datasets["ledger"], datasets.get("alternatives")
    found = []
    for k in range(ledger.sizes["target"]):
        one = ledger.isel(target=k)
        target = {
            "token": str(one["target_token"].item()),
            "role": str(one["target_role"].item()),
            "position": int(one["target_position"]),
            "probability": float(np.exp(one["log_probability"])),
        }
        if others is not None:
            here = others.isel(target=k)
            ids = here["likely_token_id"].values
            names = here["likely_token"].values if "likely_token" in here else [""] * len(ids)
            probabilities = np.exp(here["likely_log_probability"].values)
            own = int(one["target_token_id"])
            target["likely"] = [
                [str(name) or f"token {number}", float(p), int(number) == own]
                for name, number, p in zip(names, ids, probabilities, strict=True)
            ]
        found.append(target)
    return found


def _text(ledger: xr.Dataset) -> list[dict]:
    """The text from the first target on, in order, with what is no target between them."""
    positions = ledger["target_position"].values
    by_place = {int(row) + 1: k for k, row in enumerate(positions)}
    if len(by_place) < len(positions):  # a row in question twice: its targets alone
        tokens = ledger["target_token"].values
        return [{"text": str(one), "target": k} for k, one in enumerate(tokens)]
    spelled, roles = ledger["source_token"].values, ledger["source_role"].values
    found = []
    for place in range(min(by_place), max(max(by_place) + 1, len(spelled))):
        k = by_place.get(place)
        if k is None and roles[place] == "padding":
            continue
        text = spelled[place] if k is None else ledger["target_token"].values[k]
        found.append({"text": str(text), "target": k})
    return found


def _images(ledger: xr.Dataset, sample: Sample | None) -> list[dict]:
    """Each image as a picture, and which cell of its grid each visual token lies on."""
    of_image, visual = ledger["image"].values, np.flatnonzero(ledger["image"].values >= 0)
    found = []
    for number in np.unique(of_image[visual]).tolist():
        own = visual[of_image[visual] == number]
        own = own[(ledger["view"].values[own] >= 0)]
        place = [ledger[name].values[own] for name in ("view", "row", "column")]
        if not ((place[0] == 0) & (place[1] >= 0)).any():
            continue  # a bare batch: where its tokens lie is not known
        grid = arranged(np.zeros(len(own)), *place)
        token, cell, share = _spread(own, place)
        image = {
            "rows": grid.shape[0],
            "columns": grid.shape[1],
            "token": np.searchsorted(visual, token).tolist(),
            "cell": cell,
            "share": share,
            "boxes": [],
        }
        if sample is not None and number < len(sample.images):
            image |= _picture(sample.images[number])
            if sample.boxes is not None:
                boxes = np.asarray(sample.boxes, dtype=float)
                image |= {"boxes": boxes.round(5).tolist(), "chance": chance(boxes)}
        found.append(image)
    return found


def _spread(own: np.ndarray, place: list[np.ndarray]) -> tuple[list, list, list]:
    """Which share of which token's value lies on which cell: the map's own rule, token by token."""
    is_single = not place[0].any() and (place[1] >= 0).all()
    if is_single:
        n_columns = int(place[2].max()) + 1
        return own, (place[1] * n_columns + place[2]).tolist(), [1] * len(own)
    tokens, cells, shares = [], [], []
    for k, one in enumerate(np.eye(len(own))):
        grid = arranged(one, *place).ravel()
        cell = np.flatnonzero(grid)
        tokens += [own[k]] * len(cell)
        cells += cell.tolist()
        shares += grid[cell].round(6).tolist()
    return tokens, cells, shares


def _picture(image) -> dict:
    """A picture as an address that holds its own data, not larger than a page shows it."""
    picture = open_image(image)
    size = {"width": picture.width, "height": picture.height}
    is_drawn = max(picture.size) <= 128  # a few pixels, which JPEG would blur
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    buffer = BytesIO()
    form = "PNG" if is_drawn else "JPEG"
    picture.save(buffer, form, **({} if is_drawn else {"quality": 88}))
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"src": f"data:image/{form.lower()};base64,{data}", **size}


def _quantities(datasets: Mapping[str, xr.Dataset]) -> list[dict]:
    """Numbers of one value per target, by which the text can be coloured."""
    ledger, effects = datasets["ledger"], datasets.get("effects")
    direct = _by_source(ledger)
    is_visual = ledger["image"].values >= 0
    found = []

    def add(name: str, title: str, values, unit: str = "logit", is_signed: bool = True) -> None:
        values = exact(values)
        found.append(
            {"name": name, "title": title, "unit": unit, "signed": is_signed, "values": values}
        )

    for source_set in effects["source_set"].values.tolist() if effects is not None else []:
        total = effects["total"].sel(source_set=source_set).values
        title = f"{source_set}: lost when the token's row cannot read it"
        add(f"total {source_set}", title, total)
    if is_visual.any():
        add("direct", "image: written directly (Eq. 1)", direct[:, is_visual].sum(axis=1))
    add("ffn", "written by FFNs", ledger["ffn"].values.sum(axis=1))
    add("probability", "probability", np.exp(ledger["log_probability"].values), "1", False)
    add("logit", "logit", ledger["logit"].values)
    return found


def _by_source(ledger: xr.Dataset) -> np.ndarray:
    """Eq. 1 by target and source token, over all layers and heads."""
    direct = ledger["direct"]
    over = [dim for dim in direct.dims if dim not in ("target", "source")]
    return direct.sum(over).transpose("target", "source").values


def _kinds(datasets: Mapping[str, xr.Dataset], sample: Sample | None) -> list[dict]:
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
    arrays.setdefault("direct", _by_source(ledger))
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


def _ledger(ledger: xr.Dataset) -> dict:
    """Parts of each logit by layer: Eq. 1 by role of the source, value biases, FFN."""
    by_role = ledger["direct_by_layer"].transpose("target", "layer", "role")
    roles = [str(one) for one in by_role["role"].values if bool((by_role.sel(role=one) != 0).any())]
    columns = [by_role.sel(role=one).values for one in roles]
    columns += [ledger["value_bias"].sum("head").values, ledger["ffn"].values]
    return {
        "columns": [f"attention to {one}" for one in roles] + ["value biases", "FFN"],
        "by_layer": exact(np.stack(columns, axis=-1)),
        "embed": exact(ledger["embed"].values),
        "remainder": exact(ledger["remainder"].values),
        "logit": exact(ledger["logit"].values),
        "note": notes.LEDGER,
    }


def _sources(ledger: xr.Dataset) -> dict:
    """Every source token with its place, and Eq. 1 from it to every target."""
    return {
        "token": [str(one) for one in ledger["source_token"].values],
        "role": [str(one) for one in ledger["source_role"].values],
        "image": ledger["image"].values.tolist(),
        "row": ledger["row"].values.tolist(),
        "column": ledger["column"].values.tolist(),
        "direct": exact(_by_source(ledger)),
    }


def _effects(effects: xr.Dataset, ledger: xr.Dataset) -> dict:
    """Effects of each source set on each target, by path."""
    order = ("target", "source_set", "path")
    return {
        "sets": effects["source_set"].values.tolist(),
        "paths": [PATH_TITLES[one] for one in EDGE_PATHS],
        "notes": [notes.PATH_NOTES[one] for one in EDGE_PATHS],
        "effect": exact(effects["effect"].sel(path=list(EDGE_PATHS)).transpose(*order).values),
        "total": exact(effects["total"].transpose(*order[:2]).values),
        "defined": effects["is_defined"].transpose(*order[:2]).values.tolist(),
        "note": notes.HELD,
    }


def _heads(heads: xr.Dataset, ledger: xr.Dataset) -> dict:
    """Every head's sums, and of the strongest heads where they look."""
    return {
        "layers": heads.sizes["layer"],
        "heads": heads.sizes["head"],
        "all": exact(heads["head_direct"].values),
        "image": exact(heads["head_image"].values),
        "layer": heads["top_layer"].values.tolist(),
        "head": heads["top_head"].values.tolist(),
        "direct": rounded(heads["top_direct"].values),
        "attention": rounded(heads["top_attention"].values),
        "note": notes.HEADS,
    }


def _words(words: xr.Dataset, ledger: xr.Dataset) -> dict:
    """The game of four paths, of the greedy texts, in both gauges."""
    greedy = words.sel(drawn="greedy", norm="live")
    return {
        "paths": ["direct write", "rest of the row", "other positions", "the words"],
        "gauges": {
            gauge: {
                "owen": greedy["words_owen"].sel(gauge=gauge, player=list(PLAYERS)).values.tolist(),
                "total": float(greedy["words_total"].sel(gauge=gauge)),
                "interaction": float(greedy["words_interaction"].sel(gauge=gauge)),
            }
            for gauge in ("contrast", "centered")
        },
        "outcome": str(words["outcome_token"].item()),
        "foil": str(words["foil_token"].item()),
        "same": bool(words["has_same_words"]),
        "partner": str(words.attrs.get("partner", "")),
        "note": notes.WORDS,
    }


OPTIONAL = {"effects": _effects, "heads": _heads, "words": _words}
"""Sections of datasets that need not be there."""
