"""A run → the report: figures, tables, manifest and one self-contained page. Needs no model."""

import json
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import xarray as xr

import interp
from analyses.reports import intervals
from analyses.reports.direct_vs_indirect import (
    comparison,
    figures,
    findings,
    game_figures,
    game_tables,
    game_words,
    judging,
    rule,
    scene,
    trained_controls,
)
from analyses.reports.direct_vs_indirect.all_paths import Indirect
from analyses.reports.direct_vs_indirect.examples import answer_path, example_ids
from analyses.reports.direct_vs_indirect.findings import MARK, Findings
from analyses.reports.direct_vs_indirect.words import caveats, headlines
from analyses.reports.writing import Report, statuses
from interp.vocabulary import IMAGE_LEVEL, ORIGIN_TITLES, PATH_TITLES

CELL_NUMBERS = ("te", "delta", "share", "weighted_share", "median_share", "strict_share")


def make_report(run_path: Path) -> Report:
    """The report of a run, before anything is drawn.

    Raises:
        ValueError: a run that cannot be opened.
    """
    run = interp.open_run(run_path)
    results = findings.find(run)
    tables = findings.tables(results)
    second = comparison.compared_path(run_path)
    compared = interp.open_run(second) if second.is_dir() else None
    if compared is not None:
        tables["comparison"] = comparison.compare(run, compared)
    judged = _judged(rule.games_path(run_path))
    tables |= {} if judged is None else judged.tables
    answers = {one: answer_path(run_path, one) for one in example_ids(run)}
    answers = {one: path for one, path in answers.items() if path.is_file()}
    questions = dict(zip(run["sample"].values.tolist(), run["question"].values, strict=True))
    page = {
        "judged": judged and judged.page,
        "answers": [{"id": one, "question": str(questions[one])} for one in answers],
    }
    return Report(
        name="direct_vs_indirect",
        run=results.run,
        run_path=run_path,
        draw=partial(_draw, results, run_path, judged),
        tables=tables,
        page=_page(results, _compared(tables, compared)) | page,
        files={f"answers/{one}.html": path for one, path in answers.items()},
        linked="before_after",
        records={} if judged is None else {"verdict": judged.record},
    )


@dataclass(frozen=True)
class _Judged:
    """The verdict: its numbers, and what the page says of them."""

    verdicts: judging.Verdicts
    paths: pd.DataFrame
    tables: dict[str, pd.DataFrame]
    page: dict
    record: dict


def _judged(path: Path) -> _Judged | None:
    """The verdict on the run of the games; None where there is none."""
    if not path.is_dir():
        return None
    run = interp.open_run(path)
    verdicts, paths = judging.judge(run), judging.paths(run)
    left_out = Counter(
        f"{kind}: {reason}"
        for entry in run.attrs["statuses"].values()
        for kind, reason in entry.get("left_out", {}).items()
    )
    is_theirs = run.attrs["data"].startswith("digits")  # the scenes that they were trained on
    trained = trained_controls.rows(run.attrs["rule"]) if is_theirs else []
    page = {
        "headlines": game_words.headlines(paths, verdicts),
        "rows": game_words.verdict_rows(verdicts),
        "disagreement": game_words.disagreement(verdicts),
        "gates": [row | {"text": intervals.text(row)} for row in verdicts.gates.to_dict("records")],
        "cells": [_judged_cell(row) for row in verdicts.cells.to_dict("records")],
        "control": _control_rows(verdicts.control),
        "trained": trained,
        "ever": trained_controls.statement(trained),
        "n": statuses(run),
        "drawn": run["family"].to_series().value_counts().to_dict(),
        "left_out": dict(left_out),
        "rule": run.attrs["rule"],
        "is_rule": run.attrs["rule"] == rule.rule_hash(),
        "scene_seed": run.attrs["scene_seed"],
        "data": run.attrs["data"],
    }
    frames = {
        "verdict": verdicts.judgements,
        "verdict_cells": verdicts.cells,
        "verdict_gates": verdicts.gates,
        "four_paths": paths,
        "verdict_control": verdicts.control,
    }
    facts = {"rule_sha256": run.attrs["rule"], "scene_seed": run.attrs["scene_seed"]}
    # What is missing becomes null; NaN is no JSON.
    records = {name: json.loads(one.to_json(orient="records")) for name, one in frames.items()}
    return _Judged(verdicts, paths, frames, page, facts | records)


def _control_rows(control: pd.DataFrame) -> list[dict]:
    """The control's rows with their numbers as text."""
    return [
        row | {name: intervals.text(row, f"{name}_") for name in ("right", "wrong")}
        for row in control.to_dict("records")
    ]


def _judged_cell(row: dict) -> dict:
    names = ("te", "delta", "share", "strict_share")
    return row | {"name": game_tables.cell_name(row)} | {n: _cell_text(row, n) for n in names}


def _draw(results: Findings, run_path: Path, judged: _Judged | None) -> dict:
    drawn = figures.draw(results, run_path) | {"scene": scene.scene(results.run, run_path)}
    return drawn if judged is None else drawn | game_figures.draw(judged.paths, judged.verdicts)


def _page(results: Findings, compared: dict | None) -> dict:
    """Values that fill the template."""
    run = results.run
    skipped = [
        (name, entry["reason"])
        for name, entry in run.attrs["statuses"].items()
        if entry["status"] != "ok"
    ]
    return dict(
        caveats=caveats(results),
        headline=headlines(results),
        share_rows=_share_rows(results),
        path_rows=_path_rows(results),
        accuracy=None if results.accuracy is None else results.accuracy.to_dict("records"),
        compared=compared,
        **_indirect(results),
        missed=findings.missed_marks(results),
        has_kinds=len(set(run["family"].values.tolist())) > 1,
        mark=MARK,
        n_incomplete=sum(not e.get("is_complete", True) for e in run.attrs["statuses"].values()),
        box_share=float(run["box_share"].mean()) if run["box_share"].notnull().any() else None,
        errors={name: (float(a.median()), float(a.max())) for name, a in results.errors.items()},
        certificate=run.attrs.get("certificate"),
        bound=results.bound,
        is_exact=findings.is_exact(results),
        skipped=skipped,
        reduced=list(run.attrs.get("reduced", {})),
        gate=rule.GATE,
        foils=_foils(run),
        n_targets={c: int((run["target_role"] == c).sum()) for c in ("answer", "thinking")},
        n_sequence=(int(run["n_sources"].min()), int(run["n_sources"].max())),
    )


def _foils(run: xr.Dataset) -> dict[str, dict[str, int]] | None:
    """How many targets are measured against which foil, by role; None in another gauge."""
    if "is_twin_foil" not in run:
        return None
    is_twins, roles = run["is_twin_foil"].values.astype(bool), run["target_role"].values
    return {
        role: {"twin": int(is_twins[roles == role].sum()), "all": int((roles == role).sum())}
        for role in ("answer", "thinking")
    }


def _compared(tables: dict[str, pd.DataFrame], second: xr.Dataset | None) -> dict | None:
    """Values of the section on a second model, with its estimates as text."""
    if second is None:
        return None
    names = ("first", "second", "difference")
    rows = [
        {"token_class": row["token_class"], "quantity": row["quantity"], "n": row["n"]}
        | {name: intervals.text(row, f"{name}_") for name in names}
        for row in tables["comparison"].to_dict("records")
    ]
    keys = ("model", "adapter", "model_hash")
    return {"rows": rows, **{key: second.attrs.get(key, "") for key in keys}}


def _indirect(results: Findings) -> dict:
    """Values of the sections beyond edge effects; empty for a run of edge effects alone."""
    indirect = results.indirect
    if indirect is None:
        return {"has_paths": False}
    headline = indirect.cells.query("token_class == 'answer' and source_set == 'image'")
    return {
        "has_paths": True,
        "cells": [
            {"name": game_tables.cell_name(row | {"by": row["reference"]}), "n": row["n"]}
            | {name: _cell_text(row, name) for name in CELL_NUMBERS}
            for row in headline.to_dict("records")
        ],
        "modes": [_mode_row(row) for row in indirect.modes.to_dict("records")],
        "families": None
        if indirect.families is None
        else [
            row | {name: _cell_text(row, name) for name in ("te", "delta", "share")}
            for row in indirect.families.query("gauge == 'contrast' and n > 0").to_dict("records")
        ],
        "natural": _natural_rows(indirect),
        "references": indirect.natural["reference"].values.tolist(),
        "origins": [
            row
            | {"text": intervals.text(row), "share": intervals.text(row, "share_")}
            | {"title": _origin_title(row["origin"])}
            for row in indirect.origins.to_dict("records")
        ],
        "agreement": _with_text(indirect.agreement),
        "masses": _with_text(indirect.masses[~_is_nothing(indirect.masses)]),
        "n_without_mass": int(_is_nothing(indirect.masses).sum()),
        "pixels": None if indirect.pixels is None else _pixel_rows(indirect.pixels),
        "controls": None if indirect.controls is None else _with_text(indirect.controls),
        "n_sinks": int(results.run["n_sinks"].sum()),
        "peak": float(results.run["largest_peak"].max()),
    }


def _is_nothing(masses: pd.DataFrame) -> pd.Series:
    """Rows whose share is 0 in every image."""
    return (masses[["lower", "upper"]] == 0).all(axis=1)


def _origin_title(origin: str) -> str:
    """A title; a level of the image has its layer's number behind it."""
    name = IMAGE_LEVEL if origin.startswith(IMAGE_LEVEL) else origin
    return ORIGIN_TITLES[name] + origin.removeprefix(name)


def _pixel_rows(table: pd.DataFrame) -> list[dict]:
    """A row per measure, a cell per intervention."""
    return [
        {"measure": measure, "cells": [intervals.text(row) for row in group.to_dict("records")]}
        | {"n": int(group["n"].max())}
        for measure, group in table.groupby("measure", sort=False)
    ]


def _with_text(table: pd.DataFrame) -> list[dict]:
    """A table's rows, each with its estimate and interval as text."""
    return [row | {"text": intervals.text(row)} for row in table.to_dict("records")]


def _mode_row(row: dict) -> dict:
    """Edge effects of the image in one mode of the cut; no share of a total that may be small."""
    has_share = row["total_lower"] >= rule.GATE
    changes = ("total_change", "direct_change")
    return {
        "mode": row["mode"],
        "token_class": row["token_class"],
        "total": intervals.text(row, "total"),
        "share": intervals.text(row, "share") if has_share else "no share",
        **{name: intervals.text(row, name) for name in changes},
    }


def _natural_rows(indirect: Indirect) -> list[dict]:
    """Natural effects and interactions for answer tokens and the image, by reference."""
    at = {"token_class": "answer", "visual_set": "image", "norm": "live", "gauge": "contrast"}
    rows = []
    for dim, dataset in (("measure", indirect.natural), ("pair", indirect.pairs)):
        effects = dataset.sel(at)
        for name in effects[dim].values:
            cells = [effects.sel({dim: name, "reference": r}) for r in effects["reference"].values]
            rows.append({"name": str(name), "cells": [intervals.text(cell) for cell in cells]})
    return rows


def _cell_text(row: dict, name: str) -> str:
    """A number of a cell; no share where the total effect is too small for one."""
    is_share = name.endswith("share")
    return (
        "no share" if is_share and not row["te_lower"] >= rule.GATE else intervals.text(row, name)
    )


def _share_rows(results: Findings) -> list[dict]:
    rows = []
    for token_class in ("answer", "thinking"):
        for source_set in results.shares["source_set"].values:
            share = results.shares.sel(token_class=token_class, source_set=source_set)
            total = results.paths.sel(token_class=token_class, source_set=source_set, path="total")
            if int(total["n"]) == 0:
                continue
            margin = results.margins.sel(token_class=token_class, source_set=source_set)
            rows.append(
                {
                    "token_class": token_class,
                    "source_set": str(source_set),
                    "n": int(total["n"]),
                    "total": intervals.text(total),
                    "share": intervals.text(share)
                    if bool(share["is_shown"])
                    else findings.reading(total),
                    "margin": intervals.text(margin),
                }
            )
    return rows


def _path_rows(results: Findings) -> list[dict]:
    effects = results.paths.sel(source_set="image")
    return [
        {
            "path": "total effect" if path == "total" else PATH_TITLES[str(path)],
            **{
                str(c): intervals.text(effects.sel(token_class=c, path=path), digits=3)
                for c in effects["token_class"].values
                if int(effects.sel(token_class=c, path=path)["n"])
            },
        }
        for path in effects["path"].values
    ]
