"""A run of maps → tables, figures and one self-contained page. Needs no model."""

from functools import partial
from pathlib import Path

import pandas as pd

import interp
from analyses.reports import intervals
from analyses.reports.faithfulness import figures, findings
from analyses.reports.faithfulness.findings import MapFindings
from analyses.reports.faithfulness.words import headline, sentences, verb
from analyses.reports.writing import Report

BOUNDS = ("estimate", "lower", "upper")
LOWER_IS_BETTER = {"deletion": True, "insertion": False}


def make_report(run_path: Path) -> Report:
    """The report of a run, before anything is drawn.

    Raises:
        ValueError: a run that cannot be opened.
    """
    run = interp.open_run(run_path).load()
    results = findings.find(run)
    return Report(
        name="faithfulness",
        run=run,
        run_path=run_path,
        draw=partial(figures.draw, results, run_path),
        tables={
            "scores": results.scores,
            "ranking": results.ranking,
            "table1_all": table1(results, "all"),
            "table1_answer": table1(results, "answer"),
            "agreement": results.agreement,
            "alignment": results.alignment,
            "costs": results.costs,
            "random_weights": results.excess,
            "direct_suffices": results.pairs,
        },
        page=_page(results),
    )


def _page(results: MapFindings) -> dict:
    """Values that fill the template."""
    run = results.run
    return {
        "headline": headline(results),
        "sentences": sentences(results),
        "table1": {text: table1(results, text).to_dict("records") for text in ("all", "answer")},
        "best": {text: _best(results, text) for text in ("all", "answer")},
        "agreement": _wide(results.agreement, "exact"),
        "exact": run["exact"].values.tolist(),
        "alignment": None if results.alignment is None else _wide(results.alignment, "score_of"),
        "weights": run["weights"].values.tolist(),
        "controls": list(findings.CONTROLS.values()),
        "excess": None if results.excess is None else _wide(results.excess, "weights"),
        "costs": _cost_rows(results),
        "cheapest": results.costs["cheapest"].iloc[0],
        "pairs": _pair_rows(results),
        "n_excess": 0 if results.excess is None else int(results.excess["n"].max()),
        "n_correct": int(run["is_correct"].sum()),
        "n_known": int((run["reference_answer"] != "").sum()),
    }


def table1(results: MapFindings, text: str) -> pd.DataFrame:
    """Table 1's layout: a row per method, deletion and insertion at each share, with intervals."""
    rows = []
    for method, table in results.scores.query("text == @text").groupby("method", sort=False):
        row = {"method": method}
        for cell in table.sort_values(["change", "share"]).to_dict("records"):
            row[f"{cell['change']} {100 * cell['share']:.0f} %"] = intervals.text(cell, digits=1)
        rows.append(row)
    return pd.DataFrame(rows).set_index("method").loc[results.run["explainer"].values].reset_index()


def _best(results: MapFindings, text: str) -> dict[str, str]:
    """The best method of each column."""
    best = {}
    for (change, share), table in results.scores.query("text == @text").groupby(
        ["change", "share"]
    ):
        ordered = table.sort_values("estimate", ascending=LOWER_IS_BETTER[change])
        best[f"{change} {100 * share:.0f} %"] = ordered["method"].iloc[0]
    return best


def _wide(table: pd.DataFrame, column: str) -> list[dict]:
    """A row per method, a cell with its interval per value of a column."""
    return [
        {
            "method": method,
            "cells": [
                "–" if row[column] == method else intervals.text(row)  # a map with itself
                for row in one.to_dict("records")
            ],
        }
        for method, one in table.groupby("method", sort=False)
        if one[column].notna().all()
    ]


def _cost_rows(results: MapFindings) -> list[dict]:
    return [
        {
            "method": row["method"],
            "milliseconds": intervals.text({k: 1e3 * row[k] for k in BOUNDS}, digits=1),
            "ratio": f"{row['ratio']:.1f}",
            "n_empty": row["n_empty"],
            "memory": intervals.text(row, "memory", digits=1),
        }
        for row in results.costs.to_dict("records")
    ]


def _pair_rows(results: MapFindings) -> list[dict]:
    return [
        row | {"text": intervals.text(row), "verb": "" if "time" in row["measure"] else verb(row)}
        for row in results.pairs.to_dict("records")
    ]
