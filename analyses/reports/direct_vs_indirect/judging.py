"""The verdict, version 2: RULE.md applied to the run of the games. Needs no model."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from analyses.reports.direct_vs_indirect.game_tables import (
    as_rows,
    cell_name,
    cell_table,
    gate_table,
    joined,
    over_families,
)
from analyses.reports.direct_vs_indirect.rule import (
    GATE,
    GAUGES,
    LEAST_IMAGES,
    OVERALL,
)
from interp import stats
from interp.vocabulary import PATH_CLASSES, PLAYERS

CELL = {"first": ("reference", "gauge", "norm", "sinks"), "second": ("partner", "gauge", "norm")}
READINGS = ("", "_strict")


@dataclass(frozen=True)
class Verdicts:
    """All judgements, and the numbers that they rest on."""

    judgements: pd.DataFrame
    """One row per game, question, token class and family: decision, reason, strict decision."""
    cells: pd.DataFrame
    """Δ, its strict reading, TE and the share by game, question, token class, family and cell."""
    gates: pd.DataFrame
    """Mean TE, mean |TE|, and shares of images with TE < −0.5 and with |TE| < 0.5 (which counts
    for nothing), by what replaces the image."""
    control: pd.DataFrame
    """The wrong image against a neutral foil: mean TE with interval, the right image's, `holds`."""


def judge(run: xr.Dataset, seed: int = 0) -> Verdicts:
    """The verdicts of a run of the games; bootstraps have the rule's seed."""
    run = _as_the_data_has_it(run)
    parts = [_first(run, str(token_class), seed) for token_class in run["token_class"].values] + [
        _second(run, seed)
    ]
    judgements, cells, gates = (
        pd.concat(frames, ignore_index=True) for frames in zip(*parts, strict=True)
    )
    control = _control(run, seed)
    over = control[control.family == OVERALL]
    if not (len(over) and over.holds.eq(True).all()):
        is_judged = ~judgements.decision.str.startswith("too few")
        is_played = len(over) and over.n.item() >= LEAST_IMAGES
        said = "a wrong image before the text moves its answer too, or may"
        said = said if is_played else f"the control needs {LEAST_IMAGES} images of every kind"
        judgements.loc[is_judged, ["decision", "strict_decision"]] = "not assessable"
        judgements.loc[is_judged, "reason"] = said
    return Verdicts(judgements, cells, gates, control)


def _as_the_data_has_it(run: xr.Dataset) -> xr.Dataset:
    """The run in memory, contrast first; without the twin where no sample has one."""
    run = run.load().sel(gauge=list(GAUGES))
    if run.attrs.get("has_twins", True):
        return run
    return run.drop_sel(reference=["twin"], partner=["twin"])


def _control(run: xr.Dataset, seed: int) -> pd.DataFrame:
    """One row per family, and over those that the first game judges; `holds` where that is known.

    The wrong image must do nothing, and so surely that a fifth of the right one would show.
    """
    chosen = run[["control_right", "control_wrong", "family"]].dropna("sample")
    if chosen.sizes["sample"] == 0:
        return pd.DataFrame(columns=["family", "n", "holds"])
    arrays = {"right": chosen["control_right"], "wrong": chosen["control_wrong"]}
    draws = stats.drawn_means(arrays, chosen["family"], seed=seed)
    counts = chosen["family"].to_series().value_counts()
    first = run["first_total"].sel(token_class="answer")
    first = first if bool(run["has_sinks"].any()) else first.sel(sinks="with")
    n_first = first.notnull().groupby(run["family"]).sum("sample")
    names = [str(name) for name in draws["stratum"].values]
    judged = [str(one) for one in np.unique(run["family"].values)]
    complete = [one for one in judged if int(n_first.sel(family=one).min()) >= LEAST_IMAGES]
    complete = complete or judged  # the first game judges none: over all of the second's
    can_all = set(complete) <= set(names)
    rows = []
    for family in [*names, *([OVERALL] if can_all else [])]:
        members = complete if family == OVERALL else [family]
        row = {"family": family, "n": int(counts[members].min()), "holds": None}
        for name in arrays:
            ends = stats.interval_of(draws[name].sel(stratum=members).mean("stratum"))
            row |= {f"{name}_{end}": float(ends[end]) for end in ("estimate", "lower", "upper")}
        if row["n"] >= LEAST_IMAGES:
            is_sharp = row["wrong_upper"] - row["wrong_lower"] <= 2 / 5 * row["right_estimate"]
            row["holds"] = bool(row["wrong_lower"] <= 0 <= row["wrong_upper"] and is_sharp)
        rows.append(row)
    return pd.DataFrame(rows)


# ------------------------------------------------------------------------------------- the games


def _first(run: xr.Dataset, token_class: str, seed: int) -> tuple[pd.DataFrame, ...]:
    """The text held fixed: does the direct write outweigh the rest?"""
    chosen = run[["first_total", "first_direct", "first_direct_strict", "family"]]
    chosen = _without_parted_twins(chosen).sel(token_class=token_class, drop=True)
    if not bool(run["has_sinks"].any()):
        chosen = chosen.sel(sinks=["with"])
    chosen = _first_usable(chosen, chosen["first_total"])
    total = chosen["first_total"]
    claims = {"direct": ("first_direct", "first_direct_strict")}
    arrays = {name: chosen[name] for names in claims.values() for name in names}
    return _judged(("first", token_class), claims, total, arrays, chosen["family"], seed)


def _without_parted_twins(run: xr.Dataset) -> xr.Dataset:
    """The run; kinds of question whose thinking texts part have no cells of the twin.

    Such a twin is defined at the one thinking token at which the texts part, and nowhere else.
    """
    if "twin" not in run["reference"].values:
        return run
    answered = run["first_total"].sel(reference="twin", token_class="answer", drop=True).notnull()
    is_answered = answered.any([dim for dim in answered.dims if dim != "sample"]).values
    families = run["family"].values
    has_twins = np.isin(families, families[is_answered])
    keep = has_twins[:, np.newaxis] | (run["reference"].values != "twin")
    keep = xr.DataArray(keep, dims=("sample", "reference"))
    return run.assign(
        {name: run[name].where(keep) for name in run.data_vars if "reference" in run[name].dims}
    )


def _second(run: xr.Dataset, seed: int) -> tuple[pd.DataFrame, ...]:
    """The words a player: does the direct write outweigh the rest, and do the words?"""
    names = ["words_total", "words_owen", "words_owen_strict", "parting", "has_same_words"]
    chosen = _first_usable(run[[*names, "family"]], run["words_total"])
    arrays = {}
    for claim, player in (("direct", PLAYERS[0]), ("words", PLAYERS[3])):
        for end in READINGS:
            arrays[claim + end] = chosen["words_owen" + end].sel(player=player, drop=True)
    # Where the texts are the same nobody chose between them, and there is nothing to credit on.
    is_parted = chosen["parting"].notnull().all("path_class")
    arrays["chosen_direct"] = chosen["parting"].sel(path_class=PATH_CLASSES[0], drop=True)
    arrays["chosen"] = chosen["parting"].sum("path_class").where(is_parted)
    for end in READINGS:
        arrays["parted_words" + end] = (
            arrays["words" + end].where(is_parted, 0.0).where(chosen["words_total"].notnull())
        )
    claims = {
        "direct": ("direct", "direct_strict"),
        "words": ("words", "words_strict"),
        "direct, with the choice of words": (_credited(""), _credited("_strict")),
    }
    return _judged(
        ("second", "answer"), claims, chosen["words_total"], arrays, chosen["family"], seed
    )


def _credited(end: str):
    """ψ_1 = φ_1 + φ_4 σ_1, σ_1 = Σφ_1 / ΣTE where the texts part, in every draw and family."""

    def from_draws(draws: xr.Dataset) -> xr.DataArray:
        sigma = (draws["chosen_direct"] / draws["chosen"]).fillna(0.0)
        return draws["direct" + end] + draws["parted_words" + end] * sigma

    return from_draws


def _first_usable(run: xr.Dataset, total: xr.DataArray) -> xr.Dataset:
    """The first LEAST_IMAGES images of each family with all that they can have.

    An image counts as usable if it has every cell that any image of its family has.
    """
    keep: list[int] = []
    rest = [dim for dim in total.dims if dim != "sample"]
    for family in np.unique(run["family"].values):
        at = np.flatnonzero(run["family"].values == family)
        has = total.isel(sample=at).notnull()
        possible = has.any("sample")
        usable = at[(has | ~possible).all(rest).values & has.any(rest).values]
        keep += usable[:LEAST_IMAGES].tolist() if len(usable) >= LEAST_IMAGES else at.tolist()
    return run.isel(sample=sorted(keep))


# --------------------------------------------------------------------------------------- the rule


def _judged(of, claims, total, arrays, families, seed) -> tuple[pd.DataFrame, ...]:
    """Judgements, cells and gates of one game, for every family and over families."""
    (game, token_class), by = of, CELL[of[0]][0]
    label = {"game": game, "token_class": token_class}
    means = arrays | {
        "te": total,
        "size": np.abs(total),
        "negative": (total < -GATE).where(total.notnull()).astype(float),
        "small": (np.abs(total) < GATE).where(total.notnull()).astype(float),
    }
    draws = stats.drawn_means(means, families, seed=seed)
    counts = total.notnull().groupby(families).sum("sample").rename(family="stratum")
    names = [str(name) for name in draws["stratum"].values]
    complete = [name for name in names if int(counts.sel(stratum=name).min()) >= LEAST_IMAGES]
    least = counts.sel(stratum=complete).min("stratum") if complete else counts[0] * 0
    n = joined(counts, least)
    gates = gate_table(draws, n, by, complete).assign(**label)
    cells = {claim: cell_table(draws, n, readings, complete) for claim, readings in claims.items()}
    judgements, ordered = [], []
    for family in [*names, OVERALL]:
        members = complete if family == OVERALL else [family]
        for claim in claims:
            row = label | {"family": family, "claim": claim, "families": ", ".join(members)}
            cell = cells[claim][cells[claim].family == family]
            ordered.append(cell.assign(**label, claim=claim))
            judgements.append(row | _decision(cell, gates[gates.family == family]))
    return pd.DataFrame(judgements), pd.concat(ordered), gates


def _decision(cells: pd.DataFrame, gate: pd.DataFrame) -> dict:
    """The words of the rule: decision, reason and strict decision."""
    least = int(min(cells.n.min(), gate.n.min()))
    if least < LEAST_IMAGES:
        lacking = [
            one
            for one in dict.fromkeys(cells.by)
            if (cells.n[cells.by == one] < LEAST_IMAGES).any()
        ]
        said = f"too few images ({least})", f"{LEAST_IMAGES} are needed with {', '.join(lacking)}"
        return _said(*said)
    if (gate.size_upper < GATE).all():
        return _said("no effect", f"the mean |TE| is below {GATE} logits however it is asked")
    failing = gate[~gate.passes]
    if len(failing):
        reasons = [
            f"{row.by}, {row.gauge}: "
            + (
                f"mean TE may be as low as {row.lower:.2f} logits"
                if row.lower < GATE
                else f"TE < −{GATE} in {100 * row.negative:.0f} % of images"
            )
            for row in failing.itertuples()
        ]
        return _said("not assessable", "; ".join(reasons))
    decision, reason = _decide(cells, "delta")
    return _said(decision, reason, _decide(cells, "strict_delta")[0])


def _said(decision: str, reason: str, strict: str | None = None) -> dict:
    return {"decision": decision, "reason": reason, "strict_decision": strict or decision}


def _decide(cells: pd.DataFrame, name: str) -> tuple[str, str]:
    above, below = cells[f"{name}_lower"] > 0, cells[f"{name}_upper"] < 0
    if above.all():
        return "supported", f"Δ is above 0 in all {len(cells)} cells"
    if below.all():
        return "refuted", f"Δ is below 0 in all {len(cells)} cells"
    larger, word = (above, "above") if above.sum() >= below.sum() else (below, "below")
    others = "; ".join(cell_name(row) for row in cells[~larger].to_dict("records"))
    return (
        "not shown",
        f"Δ is {word} 0 in {int(larger.sum())} of {len(cells)} cells, not in: {others}",
    )


def paths(run: xr.Dataset, seed: int = 0) -> pd.DataFrame:
    """Owen values of the four players in the second game, and their shares of TE.

    One row per family (and over those with all cells), partner, gauge, norm and player.
    """
    run = _as_the_data_has_it(run)
    chosen = _first_usable(run, run["words_total"])
    draws = stats.drawn_means(
        {"owen": chosen["words_owen"], "te": chosen["words_total"]}, chosen["family"], seed=seed
    )
    counts = chosen["words_total"].notnull().groupby(chosen["family"]).sum("sample")
    names = [str(name) for name in draws["stratum"].values]
    complete = [one for one in names if int(counts.sel(family=one).min()) >= LEAST_IMAGES]
    owen, te = over_families(draws["owen"], complete), over_families(draws["te"], complete)
    value, share = stats.interval_of(owen), stats.interval_of(owen / te)
    merged = value.assign({f"share_{name}": share[name] for name in share.data_vars})
    return as_rows(merged).dropna(subset="estimate")
