"""Findings on trainings, in plain sentences. Needs no model."""

import pandas as pd

from analyses.reports import intervals
from analyses.reports.experiment.findings import (
    HALF,
    MISSING,
    MOVES,
    STAYS,
    UNASSESSABLE,
    Finding,
)
from analyses.reports.experiment.quantities import PRIMARY

SAID = {
    MOVES: "moves what the model uses",
    STAYS: "does not move what the model uses",
    UNASSESSABLE: "cannot be assessed",
}


def headline(findings: list[Finding]) -> str:
    """One sentence for the arms that have both endpoints, by the rule."""
    judged = [one for one in findings if one.verdict not in (HALF, MISSING)]
    if not judged:
        return "Runs are missing: the rule judges nothing yet, and no number here is a result."
    return (
        "By the rule: "
        + "; ".join(
            f"{one.title} {SAID.get(one.verdict, 'is not shown to move what the model uses')}"
            for one in judged
        )
        + "."
    )


def sentences(findings: list[Finding]) -> list[str]:
    """One sentence for each arm with a placebo: its gaps with their intervals."""
    lines = []
    for one in findings:
        clauses = [
            f"{quantity.title.split(' [')[0]} {intervals.text(_row(one.gaps[quantity.title]))} "
            f"over {len(one.gaps[quantity.title].seeds)} seeds"
            for quantity in PRIMARY
            if quantity.title in one.gaps
        ]
        lines.append(
            f"{one.title}, minus its placebo: {'; '.join(clauses)}. By the rule: {one.verdict}."
        )
    return lines


def hacked(table: pd.DataFrame) -> list[str]:
    """Arms whose background came to write against the answer, beside the control."""
    gaps = table.query("against == 'control' and base == 'tiny'")
    gaps = gaps[gaps["quantity"].str.startswith("background's signed share") & (gaps["upper"] < 0)]
    return [
        f"{row['title']}: the background's signed share is {intervals.text(row)} beside the "
        "control's; it writes less for the answer, or against it."
        for row in gaps.to_dict("records")
    ]


def _row(interval) -> dict:
    return {name: getattr(interval, name) for name in ("estimate", "lower", "upper")}
