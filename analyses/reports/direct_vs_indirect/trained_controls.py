r"""Verdicts on the trained controls, whose answer is known (METHODS 3.6). Needs no model.

    make controls                                  # trains them again, an hour
    python analyses/direct_vs_indirect.py --model tiny-blind-rows --limit 100 --out OUT/blind
    python analyses/direct_vs_indirect.py --model tiny-no-ffn-rows --limit 100 --out OUT/no-ffn
    python analyses/direct_vs_indirect.py --model tiny-no-ffn-rows --data digits_brief \
        --seed 20261127 --limit 450 --out OUT/brief
    python -m analyses.reports.direct_vs_indirect.trained_controls OUT/blind OUT/no-ffn OUT/brief

The last command keeps what these reports found in a file beside this one, for every page that is
judged by the same rule.
"""

import json
import sys
from pathlib import Path

import pandas as pd

from analyses.reports import intervals
from analyses.reports.direct_vs_indirect.game_words import CELL, percent, usual
from analyses.reports.direct_vs_indirect.rule import OVERALL
from interp.store.opening import write_json

KEPT = Path(__file__).with_suffix(".json")
CLOSED = {
    "tiny-blind-rows": ("edges from the answer's row to the image", "refuted"),
    "tiny-no-ffn-rows": ("FFNs of the answer's row", "supported"),
}
"""By model, what its weights close, and the verdict on the direct write that was expected."""


def found(report: Path) -> dict:
    """The verdicts and four paths of a control's report, over kinds of question.

    Raises:
        ValueError: a report of another model.
    """
    verdict, manifest = (
        json.loads((report / name).read_text()) for name in ("verdict.json", "manifest.json")
    )
    facts = manifest["provenance"]
    if facts["model"] not in CLOSED:
        raise ValueError(f"{report}: expected a report of {list(CLOSED)}, got {facts['model']!r}")
    chosen = [
        {name: row[name] for name in ("game", "claim", "decision", "reason", "families")}
        for row in verdict["verdict"]
        if row["family"] == OVERALL and row["token_class"] == "answer"
    ]
    paths = usual(pd.DataFrame(verdict["four_paths"]))
    return {
        "model": facts["model"],
        "model_hash": facts["model_hash"],
        "data": facts["data"],
        "judged": manifest["written"][:10],
        "rule_sha256": verdict["rule_sha256"],
        "verdict": chosen,
        "cells": _cells(verdict["verdict_cells"], "delta"),
        "strict_cells": _cells(verdict["verdict_cells"], "strict_delta"),
        "by_family": _by_family(verdict["four_paths"]),
        "wrong_image": next(
            (row for row in verdict["verdict_control"] if row["family"] == OVERALL), None
        ),
        "paths": [row for rows in paths for row in rows.to_dict("records")],
    }


def _by_family(paths: list[dict]) -> dict[str, float]:
    """The direct write's share by kind of question, with the twin, as in the headline."""
    return {
        row["family"]: row["share_estimate"]
        for row in paths
        if (row["partner"], row["player"]) == ("twin", "direct write")
        and all(row[name] == value for name, value in CELL.items())
        and row["family"] != OVERALL
    }


def _cells(cells: list[dict], delta: str) -> dict[str, dict[str, int]]:
    """By game, in how many of its cells Δ of the direct write is above 0, and below."""
    counts: dict[str, dict[str, int]] = {}
    for row in cells:
        if (row["family"], row["token_class"], row["claim"]) == (OVERALL, "answer", "direct"):
            own = counts.setdefault(row["game"], {"above": 0, "below": 0, "all": 0})
            own["all"] += row["n"] > 0
            own["above"] += (row[f"{delta}_lower"] or 0) > 0
            own["below"] += (row[f"{delta}_upper"] or 0) < 0
    return counts


def rows(rule: str, path: Path = KEPT) -> list[dict]:
    """A row of the page per control that was judged by a rule, and none for another rule.

    Args:
        rule: the SHA-256 of the page's rule.
        path: of the file that `main` writes.
    """
    kept = json.loads(path.read_text()) if path.is_file() else []
    return [_row(one) for one in kept if one["rule_sha256"] == rule]


def _row(control: dict) -> dict:
    closed, expected = CLOSED[control["model"]]
    direct = {row["game"]: row for row in control["verdict"] if row["claim"] == "direct"}
    shares = [
        f"{percent(pd.Series(row))} ({row['partner']})"
        for row in control["paths"]
        if row["player"] == "direct write"
    ]
    wrong = control["wrong_image"]
    return {
        "model": control["model"],
        "closed": closed,
        "cells": control["cells"],
        "strict_cells": control["strict_cells"],
        "by_family": ", ".join(
            f"{family} {100 * share:.0f} %" for family, share in control["by_family"].items()
        ),
        "wrong": None if wrong is None else intervals.text(wrong, "wrong_"),
        "right": None if wrong is None else intervals.text(wrong, "right_"),
        "expected": expected,
        "data": control["data"],
        "judged": control["judged"],
        "first": direct["first"],
        "second": direct["second"],
        "share": "; ".join(shares),
    }


def statement(controls: list[dict]) -> str:
    """The rule's words on direct paths that are known: one sentence for the last of each kind."""
    by_expected = {one["expected"]: one for one in controls}
    said = [_said(one) for one in by_expected.values()]
    if not any("supported" in _decisions(one) for one in controls):
        said.append('So nobody has seen it say "supported" of a direct path.')
    return " ".join(said)


def _decisions(control: dict) -> tuple[str, str]:
    return control["first"]["decision"], control["second"]["decision"]


def _said(control: dict) -> str:
    """A sentence about one control, with what stood in its way."""
    side = "below" if control["expected"] == "refuted" else "above"
    cells = " and ".join(f"{own[side]} of {own['all']}" for own in control["cells"].values())
    decisions = dict.fromkeys(_decisions(control))
    text = (
        f"Of {control['model']}, trained without {control['closed']}, the rule was expected to say "
        f'"{control["expected"]}", and it says "{" and ".join(decisions)}": the difference lies '
        f"{side} 0 in {cells} cells of the two games"
    )
    if control["expected"] in decisions:
        return f"{text}."
    return (
        f"{text}, but: {control['second']['reason']} (a wrong image does {control['wrong']} "
        f"logits, the right one {control['right']})."
    )


def main() -> None:
    """Keeps what the reports of a command line found."""
    write_json(KEPT, [found(Path(report)) for report in sys.argv[1:]])


if __name__ == "__main__":
    main()
