r"""The paths of an image through a text, of several models beside one another. Needs no model.

    python analyses/direct_vs_indirect.py --out OUT/tiny
    python analyses/direct_vs_indirect.py --model tiny3 --out OUT/tiny3
    python -m analyses.reports.direct_vs_indirect.compare OUT/tiny OUT/tiny3

Prints a table in Markdown: shares of the total effect with 95 % intervals, of each path and kind of
question, in the usual cell (twin, contrast gauge, live norm). Said beforehand of two models: a path
is *larger* in one where their intervals over families do not overlap, and *undecided* otherwise.
Each model is one training, so that a difference is one of these two models and not of their
families. The models are to be judged by the same rule, on the same scenes.
"""

import json
import sys
from pathlib import Path

import pandas as pd

from analyses.reports.direct_vs_indirect.game_words import CELL, percent
from analyses.reports.direct_vs_indirect.rule import OVERALL

PARTNER = "twin"
DIRECT = "direct write"


def paths_of(report: Path) -> tuple[str, pd.DataFrame]:
    """A report's model, and its paths in the usual cell.

    Raises:
        ValueError: not a report, or one without the game through the words.
    """
    try:
        verdict, manifest = (
            json.loads((report / name).read_text()) for name in ("verdict.json", "manifest.json")
        )
    except FileNotFoundError as error:
        raise ValueError(
            f"{report}: expected a folder of direct_vs_indirect, got no {Path(error.filename).name}"
        ) from None
    rows = pd.DataFrame(verdict["four_paths"])
    if rows.empty:
        raise ValueError(f"{report}: expected the game through the words, got a report without it")
    for name, value in (CELL | {"partner": PARTNER}).items():
        rows = rows[rows[name] == value]
    facts = manifest["provenance"]
    rows = rows.assign(rule=verdict["rule_sha256"], data=facts["data"])
    return facts["model"], rows


def table(reports: dict[str, pd.DataFrame]) -> str:
    """Markdown: a line per kind of question and path, a column per model.

    Raises:
        ValueError: reports of other rules or scenes.
    """
    for name in ("rule", "data"):
        kinds = {value for rows in reports.values() for value in rows[name]}
        if len(kinds) != 1:
            raise ValueError(f"expected reports of one {name}, got {sorted(kinds)}")
    first = next(iter(reports.values()))
    families = [OVERALL, *sorted(set(first["family"]) - {OVERALL})]
    lines = [
        "| kind of question | path | " + " | ".join(reports) + " |",
        "|---|---|" + "---|" * len(reports),
    ]
    for family in families:
        for player in dict.fromkeys(first["player"]):
            cells = [_cell(rows, family, player) for rows in reports.values()]
            lines.append(f"| {family} | {player} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(rows: pd.DataFrame, family: str, player: str) -> str:
    found = rows[(rows.family == family) & (rows.player == player)]
    return "–" if found.empty else percent(found.iloc[0])


def decision(one: pd.DataFrame, other: pd.DataFrame, player: str = DIRECT) -> str:
    """Whether a path is "larger" or "smaller" in the other model, or "undecided"."""
    ends = [
        rows[(rows.family == OVERALL) & (rows.player == player)].iloc[0] for rows in (one, other)
    ]
    if ends[1]["share_lower"] > ends[0]["share_upper"]:
        return "larger"
    if ends[1]["share_upper"] < ends[0]["share_lower"]:
        return "smaller"
    return "undecided"


def main(folders: list[str]) -> int:
    """Prints the table, and the decision on the direct write of two models."""
    if len(folders) < 2:
        sys.exit("expected two or more folders of direct_vs_indirect")
    try:
        found = [paths_of(Path(folder)) for folder in folders]
        reports = dict(found)
        print(table(reports))
    except ValueError as error:
        sys.exit(str(error))
    (base, first), *others = found
    for model, rows in others:
        print(f"\nThe direct write's share in {model}, against {base}: {decision(first, rows)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
