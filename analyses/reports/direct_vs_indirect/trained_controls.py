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

from analyses.reports.direct_vs_indirect.game_words import percent, usual
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
        "paths": [row for rows in paths for row in rows.to_dict("records")],
    }


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
    return {
        "model": control["model"],
        "closed": closed,
        "expected": expected,
        "data": control["data"],
        "judged": control["judged"],
        "first": direct["first"],
        "second": direct["second"],
        "share": "; ".join(shares),
    }


def main() -> None:
    """Keeps what the reports of a command line found."""
    write_json(KEPT, [found(Path(report)) for report in sys.argv[1:]])


if __name__ == "__main__":
    main()
