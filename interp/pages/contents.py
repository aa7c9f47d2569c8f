"""Datasets of one answer → what a page shows of it, as plain lists and packed arrays."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xarray as xr

from interp.data.sample import Sample, at_hand
from interp.maps.map import whose_text
from interp.pages import notes
from interp.pages.drawn_images import drawn_images
from interp.pages.map_kinds import by_source, map_kinds
from interp.pages.packing import exact, rounded
from interp.pages.path_graph import as_graph
from interp.vocabulary import EDGE_PATHS, PATH_TITLES, PLAYERS

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
    _check_together(found)
    return found


def _check_together(found: dict[str, xr.Dataset]) -> None:
    """Raises ValueError for datasets of another text, model or gauge than the ledger's.

    Maps may be of some of its targets; everything else is read by their number.
    """
    ledger = found["ledger"]
    known = _targets_of(ledger)
    for name, one in found.items():
        for fact in ("model_hash", "adapter_hash", "gauge"):
            own, other = ledger.attrs.get(fact), one.attrs.get(fact)
            if own and other and own != other:
                raise ValueError(f"expected the ledger's {fact}, {own}, got {other} in {name}")
        if "source_token_id" in one.coords:
            own, other = ledger["source_token_id"].values, one["source_token_id"].values
            if not np.array_equal(own, other):
                raise ValueError(
                    f"expected datasets of one text, got {name} of another than the ledger"
                )
        if "target_position" in one.coords:
            asked = _targets_of(one)
            is_part = name in ("maps", "pixels") and set(asked) <= set(known)
            if asked != known and not is_part:
                raise ValueError(f"expected the ledger's targets, got others in {name}")


def _targets_of(dataset: xr.Dataset) -> list[tuple[int, int]]:
    """Each target's row and token."""
    columns = (dataset[name].values.tolist() for name in ("target_position", "target_token_id"))
    return list(zip(*columns, strict=True))


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
        "facts": {key: told(str(value)) for key, value in ledger.attrs.items() if str(value)},
        "images": drawn_images(ledger, sample),
        "tokens": _text(ledger),
        "targets": targets,
        "start": _start(ledger, answer.chosen),
        "image": answer.image,
        "left_out": list(answer.left_out),
        "quantities": _quantities(datasets),
        "kinds": map_kinds(datasets, sample),
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
    names = [told(str(attributes.get(name, ""))) for name in ("model", "adapter")]
    return " + ".join(name for name in names if name)


def told(value: str) -> str:
    """A fact as a page says it, which may be sent: of a folder's path its last part alone."""
    return Path(value).name if Path(value).is_absolute() else value


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


def _quantities(datasets: Mapping[str, xr.Dataset]) -> list[dict]:
    """Numbers of one value per target, by which the text can be coloured."""
    ledger, effects = datasets["ledger"], datasets.get("effects")
    direct = by_source(ledger)
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
        "direct": exact(by_source(ledger)),
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
