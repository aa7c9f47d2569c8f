"""A run of maps → tables, figures and one self-contained page. Needs no model."""

from functools import partial
from pathlib import Path

import pandas as pd

import interp
from analyses.reports import intervals
from analyses.reports.faithfulness import figures, findings
from analyses.reports.faithfulness.findings import MapFindings
from analyses.reports.faithfulness.words import sentences, verb
from analyses.reports.writing import Report

BOUNDS = ("estimate", "lower", "upper")
LOWER_IS_BETTER = {"deletion": True, "insertion": False}


def make_report(run_path: Path) -> Report:
    """The report of a run, before anything is drawn.

    Raises:
        ValueError: a run that cannot be opened.
    """
    run = interp.open_run(run_path).load()
    found = findings.find(run)
    return Report(
        name="faithfulness",
        run=run,
        run_path=run_path,
        draw=partial(figures.draw, found, run_path),
        tables={
            "scores": found.scores,
            "table1_all": table1(found, "all"),
            "table1_answer": table1(found, "answer"),
            "agreement": found.agreement,
            "alignment": found.alignment,
            "costs": found.costs,
            "random_weights": found.excess,
            "direct_suffices": found.pairs,
        },
        page=_page(found),
    )


def _page(found: MapFindings) -> dict:
    """Values that fill the template."""
    run = found.run
    return {
        "sentences": sentences(found),
        "table1": {text: table1(found, text).to_dict("records") for text in ("all", "answer")},
        "best": {text: _best(found, text) for text in ("all", "answer")},
        "agreement": _wide(found.agreement, "exact"),
        "exact": run["exact"].values.tolist(),
        "alignment": None if found.alignment is None else _wide(found.alignment, "score_of"),
        "weights": run["weights"].values.tolist(),
        "controls": list(findings.CONTROLS.values()),
        "excess": None if found.excess is None else _wide(found.excess, "weights"),
        "costs": _cost_rows(found),
        "pairs": _pair_rows(found),
        "n_excess": 0 if found.excess is None else int(found.excess["n"].max()),
        "n_correct": int(run["is_correct"].sum()),
    }


def table1(found: MapFindings, text: str) -> pd.DataFrame:
    """Table 1's layout: a row per method, deletion and insertion at each share, with intervals."""
    rows = []
    for method, table in found.scores.query("text == @text").groupby("method", sort=False):
        row = {"method": method}
        for one in table.sort_values(["change", "share"]).to_dict("records"):
            row[f"{one['change']} {100 * one['share']:.0f} %"] = intervals.text(one, digits=1)
        rows.append(row)
    return pd.DataFrame(rows).set_index("method").loc[found.run["explainer"].values].reset_index()


def _best(found: MapFindings, text: str) -> dict[str, str]:
    """The best method of each column."""
    best = {}
    for (change, share), table in found.scores.query("text == @text").groupby(["change", "share"]):
        ordered = table.sort_values("estimate", ascending=LOWER_IS_BETTER[change])
        best[f"{change} {100 * share:.0f} %"] = ordered["method"].iloc[0]
    return best


def _wide(table: pd.DataFrame, column: str) -> list[dict]:
    """A row per method, a cell with its interval per value of a column."""
    return [
        {"method": method, "cells": [intervals.text(row) for row in one.to_dict("records")]}
        for method, one in table.groupby("method", sort=False)
        if one[column].notna().all()
    ]


def _cost_rows(found: MapFindings) -> list[dict]:
    return [
        {
            "method": row["method"],
            "milliseconds": intervals.text({k: 1e3 * row[k] for k in BOUNDS}, digits=1),
            "ratio": f"{row['ratio']:.1f}",
            "n_empty": row["n_empty"],
            "memory": intervals.text(row, "memory", digits=1),
        }
        for row in found.costs.to_dict("records")
    ]


def _pair_rows(found: MapFindings) -> list[dict]:
    return [
        row | {"text": intervals.text(row), "verb": "" if "time" in row["measure"] else verb(row)}
        for row in found.pairs.to_dict("records")
    ]
