"""A run → the report: figures, tables, manifest and one self-contained page. Needs no model."""

import base64
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

import interp
from analyses.reports.before_after.page import RUN, write_page
from analyses.reports.direct_vs_indirect import comparison, figures, findings, verdict
from analyses.reports.direct_vs_indirect.all_paths import Indirect
from analyses.reports.direct_vs_indirect.findings import MARK, Findings
from analyses.reports.direct_vs_indirect.words import headlines, interval_text, verdict_sentence
from analyses.reports.writing import LONG, render, statuses
from interp.store.opening import write_json
from interp.vocabulary import PATH_TITLES

CELL_NUMBERS = ("te", "delta", "share", "weighted_share", "median_share", "strict_share")


def write_report(run_path: Path, out: Path) -> dict[str, int]:
    """Writes OUT/index.html, figures, tables and manifest; returns the counts of statuses.

    Raises:
        ValueError: a run that cannot be opened.
    """
    run = interp.open_run(run_path)
    found = findings.find(run)
    for folder in ("figures", "tables"):
        for old in (out / folder).glob("*.*"):
            old.unlink()
    drawn = figures.draw_all(found, run_path, out / "figures")
    tables = findings.tables(found)
    second = comparison.compared_path(run_path)
    compared = interp.open_run(second) if second.is_dir() else None
    if compared is not None:
        tables["comparison"] = comparison.compare(run, compared)
    (out / "tables").mkdir(parents=True, exist_ok=True)
    for name, frame in tables.items():
        frame.to_csv(out / "tables" / f"{name}.csv", index=False)
        latex = frame.to_latex(index=False, float_format="%.3g", escape=True)
        (out / "tables" / f"{name}.tex").write_text(latex)
    if found.indirect is not None:
        write_json(out / "verdict.json", _verdict(found))
    counts = statuses(run)
    training = run_path.parent / RUN
    after = write_page(training, out / "before_after") if training.is_dir() else None
    page = _page(found, drawn, counts, _compared(tables, compared), after)
    (out / "index.html").write_text(page)
    packages = ("xarray", "scipy", "seaborn", "matplotlib")
    content = {
        "run": str(run_path),
        "seed": run.attrs["seed"],
        "counts": counts,
        "provenance": {k: v for k, v in run.attrs.items() if k not in LONG},
        "packages": {name: version(name) for name in packages},
        "files": sorted(str(p.relative_to(out)) for p in out.glob("[ft]*/*")),
    }
    write_json(out / "manifest.json", content)
    return counts


def _page(
    found: Findings,
    drawn: dict,
    counts: dict[str, int],
    compared: dict | None,
    training: dict | None,
) -> str:
    run = found.run
    images = {name: base64.b64encode(png).decode() for name, png in drawn.items()}
    skipped = [
        (name, entry["reason"])
        for name, entry in run.attrs["statuses"].items()
        if entry["status"] != "ok"
    ]
    return render(
        "direct_vs_indirect/page.html",
        images=images,
        headline=headlines(found),
        share_rows=_share_rows(found),
        path_rows=_path_rows(found),
        accuracy=None if found.accuracy is None else found.accuracy.to_dict("records"),
        compared=compared,
        training=training,
        **_indirect(found),
        missed=findings.missed_marks(found),
        mark=MARK,
        n_incomplete=sum(not e.get("is_complete", True) for e in run.attrs["statuses"].values()),
        box_share=float(run["box_share"].mean()) if run["box_share"].notnull().any() else None,
        errors={name: (float(a.median()), float(a.max())) for name, a in found.errors.items()},
        certificate=run.attrs.get("certificate"),
        bound=found.bound,
        is_exact=findings.is_exact(found),
        counts=counts,
        skipped=skipped,
        reduced=list(run.attrs.get("reduced", {})),
        gate=verdict.GATE,
        attributes={k: v for k, v in run.attrs.items() if k not in LONG},
        n_targets={c: int((run["target_role"] == c).sum()) for c in ("answer", "thinking")},
        n_sequence=(int(run["n_sources"].min()), int(run["n_sources"].max())),
    )  # fmt: skip


def _compared(tables: dict[str, pd.DataFrame], second: xr.Dataset | None) -> dict | None:
    """What the page says of a second model, with its estimates as text."""
    if second is None:
        return None
    names = ("first", "second", "difference")
    rows = [
        {"token_class": row["token_class"], "quantity": row["quantity"], "n": row["n"]}
        | {name: _bounds(row, f"{name}_") for name in names}
        for row in tables["comparison"].to_dict("records")
    ]
    keys = ("model", "adapter", "model_hash")
    return {"rows": rows, **{key: second.attrs.get(key, "") for key in keys}}


def _indirect(found: Findings) -> dict:
    """What the page says beyond edge effects; nothing for a run of edge effects alone."""
    more = found.indirect
    if more is None:
        return {"verdicts": None}
    headline = more.verdicts.cells.query("token_class == 'answer' and source_set == 'image'")
    return {
        "verdicts": [(j, verdict_sentence(j)) for j in more.verdicts.judgements],
        "cells": [
            {"name": verdict.cell_name(row), "n": row["n"], "votes": row["votes"]}
            | {name: _cell_text(row, name) for name in CELL_NUMBERS}
            for row in headline.to_dict("records")
        ],
        "gates": [row | {"text": _bounds(row)} for row in more.verdicts.gates.to_dict("records")],
        "modes": [
            {"mode": row["mode"], "token_class": row["token_class"], "total": _bounds(row, "total")}
            | {"share": _bounds(row, "share") if row["total_lower"] >= verdict.GATE else "no share"}
            | {name: _bounds(row, name) for name in ("total_change", "direct_change")}
            for row in more.modes.to_dict("records")
        ],
        "families": None if more.families is None else [
            row | {name: _cell_text(row, name) for name in ("te", "delta", "share")}
            for row in more.families.query("gauge == 'centered' and n > 0").to_dict("records")
        ],
        "natural": _natural_rows(more),
        "references": more.natural["reference"].values.tolist(),
        "origins": [
            row | {"text": _bounds(row), "share": _bounds(row, "share_")}
            for row in more.origins.to_dict("records")
        ],
        "agreement": [row | {"text": _bounds(row)} for row in more.agreement.to_dict("records")],
        "masses": [row | {"text": _bounds(row)} for row in more.masses.to_dict("records")],
        "controls": None if more.controls is None else [
            row | {"text": _bounds(row)} for row in more.controls.to_dict("records")
        ],
        "rules": {"images": verdict.LEAST_IMAGES, "negative": verdict.MOST_NEGATIVE},
        "n_sinks": int(found.run["n_sinks"].sum()),
        "peak": float(found.run["largest_peak"].max()),
    }  # fmt: skip


def _verdict(found: Findings) -> dict:
    """The verdict with its rule, gates and cells, for machines."""
    verdicts = found.indirect.verdicts
    return {
        "rule": {
            "gate_logit": verdict.GATE,
            "most_negative": verdict.MOST_NEGATIVE,
            "least_images": verdict.LEAST_IMAGES,
            "least_references": verdict.LEAST_REFERENCES,
        },
        "judgements": [vars(judgement) for judgement in verdicts.judgements],
        # What is missing becomes null; NaN is no JSON.
        "gates": json.loads(verdicts.gates.to_json(orient="records")),
        "cells": json.loads(verdicts.cells.to_json(orient="records")),
    }


def _natural_rows(more: Indirect) -> list[dict]:
    """Natural effects and interactions for answer tokens and the image, by reference."""
    at = {"token_class": "answer", "visual_set": "image", "norm": "live", "gauge": "centered"}
    rows = []
    for dim, found in (("measure", more.natural), ("pair", more.pairs)):
        one = found.sel(at)
        for name in one[dim].values:
            cells = [one.sel({dim: name, "reference": r}) for r in one["reference"].values]
            rows.append({"name": str(name), "cells": [interval_text(cell) for cell in cells]})
    return rows


def _cell_text(row: dict, name: str) -> str:
    """A number of a verdict's cell; no share where the total effect is too small for one."""
    is_share = name.endswith("share")
    return "no share" if is_share and not row["te_lower"] >= verdict.GATE else _bounds(row, name)


def _bounds(row: dict, name: str = "") -> str:
    """An estimate with its interval, out of a table's row.

    The columns are called "delta", "delta_lower", …; for a name that is empty or ends in _,
    "first_estimate", "first_lower", ….
    """
    keys = (name or "estimate", f"{name}_lower", f"{name}_upper")
    if not name or name.endswith("_"):
        keys = tuple(f"{name}{end}" for end in ("estimate", "lower", "upper"))
    estimate, low, high = (row[key] for key in keys)
    if np.isnan(low):  # one image has no interval
        return "–" if np.isnan(estimate) else f"{estimate:.2f} [–]"
    return f"{estimate:.2f} [{low:.2f}, {high:.2f}]"


def _share_rows(found: Findings) -> list[dict]:
    rows = []
    for token_class in ("answer", "thinking"):
        for source_set in found.shares["source_set"].values:
            one = found.shares.sel(token_class=token_class, source_set=source_set)
            total = found.paths.sel(token_class=token_class, source_set=source_set, path="total")
            if int(total["n"]) == 0:
                continue
            margin = found.margins.sel(token_class=token_class, source_set=source_set)
            rows.append(
                {
                    "token_class": token_class,
                    "source_set": str(source_set),
                    "n": int(total["n"]),
                    "total": interval_text(total),
                    "share": interval_text(one)
                    if bool(one["is_shown"])
                    else findings.reading(total),
                    "margin": interval_text(margin),
                }
            )
    return rows


def _path_rows(found: Findings) -> list[dict]:
    one = found.paths.sel(source_set="image")
    return [
        {
            "path": "total effect" if path == "total" else PATH_TITLES[str(path)],
            **{
                str(c): interval_text(one.sel(token_class=c, path=path), digits=3)
                for c in one["token_class"].values
                if int(one.sel(token_class=c, path=path)["n"])
            },
        }
        for path in one["path"].values
    ]
