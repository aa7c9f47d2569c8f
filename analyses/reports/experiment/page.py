"""The runs of the experiment that are done → tables, figures and one self-contained page.

    python -m analyses.reports.experiment.page --out reports/out/experiment

`make experiment` makes the runs. Needs no model.
"""

import argparse
import hashlib
from pathlib import Path

import numpy as np
import pandas as pd

from analyses.reports import drawing, intervals
from analyses.reports.experiment import figures, findings
from analyses.reports.experiment.quantities import ALIGNED
from analyses.reports.experiment.results import FOLDER, Result, by_seed, results
from analyses.reports.experiment.words import hacked, headline, sentences
from analyses.reports.folding import folded
from analyses.reports.writing import render, save_tables

PLAN = Path("docs/EXPERIMENT.md")


def write(out: Path, folder: Path = FOLDER, plan: Path = PLAN) -> int:
    """Writes the page with its tables and figures into `out`; returns how many runs it is of.

    Raises:
        ValueError: no run is done.
    """
    runs = results(folder=folder)
    table, found = findings.table(runs), findings.find(runs)
    for name in ("figures", "tables"):
        (out / name).mkdir(parents=True, exist_ok=True)
    drawn = figures.draw(table, chances(runs)).items()
    images = drawing.save({name: one for name, one in drawn if one is not None}, out / "figures")
    save_tables({"quantities": table, "verdicts": _verdicts(found)}, out / "tables")
    page = render(
        "experiment/page.html",
        images=images,
        headline=headline(found),
        sentences=sentences(found),
        hacked=hacked(table),
        rows=_rows(table),
        tiny3=_rows(table, base="tiny3"),
        n_runs=len(runs),
        runs=[run.facts for run in runs],
        plan_hash=hashlib.sha256(plan.read_bytes()).hexdigest()[:16],
        boxed=None,
    )
    (out / "index.html").write_text(folded(page), encoding="utf-8")
    return len(runs)


def chances(runs: list[Result]) -> dict[str, float]:
    """Score of a map that knows nothing, by quantity: the boxes' area."""
    found = {}
    for quantity in ALIGNED.values():
        key = ("tiny", quantity.trained, "control")
        if by_seed(runs, key, quantity):
            table = next(run.tables[quantity.measured] for run in runs if run.key == key)
            found[quantity.title] = float(np.mean(quantity.chance(table)))
    return found


def _verdicts(found: list[findings.Finding]) -> pd.DataFrame:
    rows = [
        {"arm": one.arm, "endpoint": title, "verdict": one.verdict, "p": gap.p}
        | {name: getattr(gap, name) for name in ("estimate", "lower", "upper")}
        for one in found
        for title, gap in one.gaps.items()
    ]
    return pd.DataFrame(rows)


def _rows(table: pd.DataFrame, base: str = "tiny") -> list[dict]:
    """A row per quantity and arm: level, minus placebo, minus control."""
    own = table[table["base"] == base].sort_values("place", kind="stable")
    found = []
    for (quantity, _), one in own.groupby(["quantity", "arm"], sort=False):
        cells = {row["against"]: intervals.text(row) for row in one.to_dict("records")}
        first = one.iloc[0]
        found.append(
            {
                "quantity": quantity,
                "title": first["title"],
                "is_primary": first["is_primary"],
                "n_seeds": first["n_seeds"],
                "level": cells.get("", "–"),
                "placebo": cells.get("placebo", "–"),
                "control": cells.get("control", "–"),
            }
        )
    return sorted(found, key=lambda row: not row["is_primary"])


def main() -> None:
    """Writes the page of the runs that are done."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("reports/out/experiment"))
    options = parser.parse_args()
    try:
        n_runs = write(options.out)
    except ValueError as error:
        parser.error(str(error))
    print(f"{options.out / 'index.html'}: {n_runs} runs")


if __name__ == "__main__":
    main()
