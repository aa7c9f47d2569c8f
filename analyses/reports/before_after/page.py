"""A run of models before and after training → tables, figures and one page. Needs no model."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from analyses.reports import intervals
from analyses.reports.before_after import figures, findings
from analyses.reports.before_after.findings import ArmFindings, controls
from analyses.reports.before_after.runs import open_arms
from analyses.reports.before_after.words import first_screen, sentences
from analyses.reports.writing import Report, statuses
from interp.vocabulary import RULE_TITLES


def make_report(run_path: Path) -> Report:
    """The report of a run, before anything is drawn.

    Raises:
        ValueError: a run that cannot be opened.
    """
    run = open_arms(run_path)
    results = findings.find(run)
    return Report(
        name="before_after",
        run=run,
        run_path=run_path,
        draw=partial(figures.draw, results, run_path),
        tables={
            "levels": results.levels,
            "changes": results.changes,
            "curves": results.curves,
            "seeds": results.seeds,
        },
        page=_page(results),
        records={"summary": _summary(results)},
    )


def _page(results: ArmFindings) -> dict:
    """Values that fill the template."""
    reasons, text = results.run.attrs["reasons"], results.run.attrs["text"]
    return {
        "gauge": findings.GAUGE,
        "sentences": sentences(results),
        "moved": first_screen(results),
        "before": results.before,
        "after": results.after,
        "groups": _groups(results),
        "missing": {arm: len(said) for arm, said in reasons.items() if said},
        "costs": _costs(results),
        "same": {
            "reference": "the samples' reference text",
            "before": f"what {results.before} wrote",
        }[text],
        "seeds": _seeds(results),
        "controls": controls(results.run),
        "titles": RULE_TITLES,
    }


def _summary(results: ArmFindings) -> dict:
    """Summary that another report's page shows."""
    return {
        "before": results.before,
        "counts": statuses(results.run),
        "sentences": sentences(results),
        "figure": "figures/effects.png",
    }


def _groups(results: ArmFindings) -> list[dict]:
    """The page's tables: a row per quantity, before, then every arm's change and difference."""
    keys = ["group", "quantity", "arm"]
    levels = results.levels.set_index(keys)
    by_other = {other: table.set_index(keys) for other, table in results.changes.groupby("against")}
    groups = []
    for group, table in results.levels.groupby("group", sort=False):
        rows = []
        for name in table["quantity"].drop_duplicates():
            before = levels.loc[(group, name, results.before)]
            n_before = before["n"]
            cells = [
                {
                    "change": _cell(by_other["before"].loc[(group, name, arm)], n_before),
                    "control": _cell(by_other["control"].loc[(group, name, arm)], n_before)
                    if arm in controls(results.run)
                    else None,
                }
                for arm in results.after
            ]
            rows.append(
                {
                    "name": name,
                    "before": intervals.text(before, digits=None),
                    "n": f"{n_before:.0f}",
                    "cells": cells,
                }
            )
        groups.append({"name": group, "rows": rows})
    return groups


def _seeds(results: ArmFindings) -> list[dict] | None:
    """Rows of the table over training runs: a cell per reward and what it is compared with."""
    if results.seeds is None:
        return None
    rows = []
    for (group, name), table in results.seeds.groupby(["group", "quantity"], sort=False):
        cells = [
            {
                "reward": one["reward"],
                "against": one["against"],
                "n": one["n_runs"],
                "text": _spread(one),
            }
            for one in table.to_dict("records")
        ]
        rows.append({"group": group, "name": name, "cells": cells})
    return rows


def _spread(row: dict) -> str:
    """Mean over runs, least and largest."""
    if not np.isfinite(row["mean"]):
        return "–"
    digits = 3 if max(abs(row["least"]), abs(row["largest"])) < 0.1 else 2
    return f"{row['mean']:.{digits}f} ({row['least']:.{digits}f} to {row['largest']:.{digits}f})"


def _cell(row: pd.Series, n_before: int) -> dict:
    """A difference, whether its interval leaves 0 out, and its images where they are fewer."""
    text = intervals.text(row, digits=None)
    if row["n"] != n_before:
        text += f", n {row['n']:.0f}"
    return {"text": text, "is_clear": bool(row["lower"] > 0 or row["upper"] < 0)}


def _costs(results: ArmFindings) -> list[dict]:
    """Share of every training's time that went into maps, median over steps."""
    if results.curves is None or "seconds/saliency" not in results.curves:
        return []
    share = results.curves["seconds/saliency"] / results.curves["step_time"]
    by_arm = share.groupby(results.curves["arm"], sort=False)
    return [
        {
            "arm": arm,
            "median": f"{100 * one.median():.0f}",
            "range": f"{100 * one.quantile(0.05):.0f} to {100 * one.quantile(0.95):.0f}",
        }
        for arm, one in by_arm
    ]
