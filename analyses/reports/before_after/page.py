"""A run of models before and after training → tables, figures and one page. Needs no model."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from analyses.reports import intervals
from analyses.reports.before_after import figures, findings
from analyses.reports.before_after.findings import ArmFindings, controls
from analyses.reports.before_after.runs import open_arms
from analyses.reports.before_after.words import sentences
from analyses.reports.writing import Report, statuses
from interp.vocabulary import RULE_TITLES


def make_report(run_path: Path) -> Report:
    """The report of a run, before anything is drawn.

    Raises:
        ValueError: a run that cannot be opened.
    """
    run = open_arms(run_path)
    found = findings.find(run)
    return Report(
        name="before_after",
        run=run,
        run_path=run_path,
        draw=partial(figures.draw, found, run_path),
        tables={
            "levels": found.levels,
            "changes": found.changes,
            "curves": found.curves,
            "seeds": found.seeds,
        },
        page=_page(found),
        records={"summary": _summary(found)},
    )


def _page(found: ArmFindings) -> dict:
    """Values that fill the template."""
    reasons, text = found.run.attrs["reasons"], found.run.attrs["text"]
    return {
        "sentences": sentences(found),
        "before": found.before,
        "after": found.after,
        "groups": _groups(found),
        "missing": {arm: len(said) for arm, said in reasons.items() if said},
        "costs": _costs(found),
        "same": {
            "reference": "the samples' reference text",
            "before": f"what {found.before} wrote",
        }[text],
        "seeds": _seeds(found),
        "controls": controls(found.run),
        "titles": RULE_TITLES,
    }


def _summary(found: ArmFindings) -> dict:
    """Summary that another report's page shows."""
    return {
        "before": found.before,
        "counts": statuses(found.run),
        "sentences": sentences(found),
        "figure": "figures/effects.png",
    }


def _groups(found: ArmFindings) -> list[dict]:
    """The page's tables: a row per quantity, before, then every arm's change and difference."""
    keys = ["group", "quantity", "arm"]
    levels = found.levels.set_index(keys)
    by_other = {other: table.set_index(keys) for other, table in found.changes.groupby("against")}
    groups = []
    for group, table in found.levels.groupby("group", sort=False):
        rows = []
        for name in table["quantity"].drop_duplicates():
            before = levels.loc[(group, name, found.before)]
            n_before = before["n"]
            cells = [
                {
                    "change": _cell(by_other["before"].loc[(group, name, arm)], n_before),
                    "control": _cell(by_other["control"].loc[(group, name, arm)], n_before)
                    if arm in controls(found.run)
                    else None,
                }
                for arm in found.after
            ]
            rows.append(
                {
                    "name": name,
                    "before": intervals.text(before, digits=None),
                    "n": n_before,
                    "cells": cells,
                }
            )
        groups.append({"name": group, "rows": rows})
    return groups


def _seeds(found: ArmFindings) -> list[dict] | None:
    """Rows of the table over training runs: a cell per reward and what it is compared with."""
    if found.seeds is None:
        return None
    rows = []
    for (group, name), table in found.seeds.groupby(["group", "quantity"], sort=False):
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
    said = intervals.text(row, digits=None)
    if row["n"] != n_before:
        said += f", n {row['n']:.0f}"
    return {"text": said, "is_clear": bool(row["lower"] > 0 or row["upper"] < 0)}


def _costs(found: ArmFindings) -> list[dict]:
    """Share of every training's time that went into maps, median over steps."""
    if found.curves is None or "seconds/saliency" not in found.curves:
        return []
    share = found.curves["seconds/saliency"] / found.curves["step_time"]
    by_arm = share.groupby(found.curves["arm"], sort=False)
    return [
        {
            "arm": arm,
            "median": f"{100 * one.median():.0f}",
            "range": f"{100 * one.quantile(0.05):.0f} to {100 * one.quantile(0.95):.0f}",
        }
        for arm, one in by_arm
    ]
