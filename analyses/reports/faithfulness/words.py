"""Findings on maps, in plain sentences. Needs no model."""

import numpy as np

from analyses.reports import intervals
from analyses.reports.faithfulness.findings import MapFindings

PAPERS = ("bottleneck (Saliency-R1)", "direct (Eq. 1)")
NOTHING = "random"


def headline(findings: MapFindings) -> str:
    """Which map is how good, against a random one and the best, by deletion of the answer."""
    rows = findings.ranking.query("text == 'answer' and change == 'deletion'")
    by_method = {row["method"]: row for row in rows.to_dict("records")}
    first = next(iter(by_method))
    named = [name for name in (first, *PAPERS, NOTHING) if name in by_method]
    scores = ", ".join(
        f"{intervals.text(by_method[name], digits=0)} by {name}" for name in dict.fromkeys(named)
    )
    return (
        "Painted over where a map is highest, the image leaves the answer this much of its "
        f"log-likelihood (100 on the whole image, 0 on a blank one; less is better): {scores}. "
        f"First of {len(by_method)} maps by that number: {first}; intervals that overlap do not "
        "tell maps apart."
    )


def sentences(findings: MapFindings) -> list[str]:
    """Sentences on what a map loses by ignoring indirect paths."""
    lines = []
    for (first, second), table in findings.pairs.groupby(["first", "second"], sort=False):
        rows = {row["measure"]: row for row in table.to_dict("records")}
        clauses = [
            f"{name.split(' (')[0]} {verb(row)} ({intervals.text(row)})"
            for name, row in rows.items()
            if not name.startswith("time")
        ]
        time = intervals.text(rows["time, median ratio"], digits=1)
        lines.append(
            f"{second} instead of {first}: {'; '.join(clauses)}; for {time} times the time."
        )
    return lines


def verb(row: dict) -> str:
    """Better, worse, or not told apart; "not measured" without an interval."""
    if not np.isfinite([row["lower"], row["upper"]]).all():
        return "not measured"
    if row["lower"] <= 0 <= row["upper"]:
        return "not told apart"
    is_better = (row["estimate"] < 0) == ("less is better" in row["measure"])
    return "better" if is_better else "worse"
