"""Did the map move because the effect moved? In plain words, from tables alone."""

from functools import partial

import numpy as np

from analyses.reports import intervals
from analyses.reports.before_after.findings import (
    CROSSED,
    EVIDENCE_SHARE,
    GAME,
    REFERENCE_TITLES,
    ArmFindings,
    controls,
)
from interp.vocabulary import PLAYERS, RULE_TITLES

SAME = "alignment, same text"
LEAST_IMAGES = 100  # as for a verdict (METHODS.md 3.6)


def sentences(findings: ArmFindings) -> list[tuple[str, str]]:
    """(model, what its training did) for every model after training."""
    return [(arm, _sentence(findings, arm)) for arm in findings.after]


def first_screen(findings: ArmFindings) -> list[tuple[str, str]]:
    """(model, what moved beyond the control, and through which path); empty for older runs."""
    if GAME not in set(findings.changes["group"]):
        return []
    return [(arm, _moved(findings, arm)) for arm in findings.after]


def _moved(findings: ArmFindings, arm: str) -> str:
    """The sentence on image and words, on the model's own words, against control or before."""
    control = controls(findings.run).get(arm)
    against, than = ("control", f"that of {control}") if control else ("before", "that of before")
    change = partial(_row, findings, arm, against, GAME)
    total = change("total [logit]")
    words = {
        1: "more than",
        -1: "less than",
        0: "not told apart from",
        None: "not measured against",
    }
    by_player = ", ".join(
        f"{player} {intervals.text(change(f'{player} [logit]'))}" for player in PLAYERS
    )
    crossed = [_row(findings, arm, "before", GAME, f"{title} [logit]") for title in CROSSED]
    how = words[direction([total])]
    sentence = (
        f"What the answer's log-odds lose with the twin's image and words is {how} {than}: "
        f"{intervals.text(total)} logits ({by_player})."
    )
    if np.isfinite(crossed[0]["estimate"]):
        sentence += (
            f" Since before: {intervals.text(crossed[0])} by other weights on the words before, "
            f"{intervals.text(crossed[1])} by other words under the weights before."
        )
    return sentence


def _sentence(findings: ArmFindings, arm: str) -> str:
    paid = findings.run.attrs["arms"][arm]["map"]
    rule = _rule(paid)
    directions = _directions(findings, arm, rule, "before")
    share = direction([_share(findings, arm, "before")])
    sentence = f"{reading(*directions, is_paid=paid in RULE_TITLES, share=share)} "
    n_images = int(_rows(findings, arm, rule, "before")[0]["n"])
    if n_images < LEAST_IMAGES:
        sentence = f"On {n_images} images, where {LEAST_IMAGES} are needed to say so: {sentence}"
    sentence += f"{_title(rule, paid)} {_clauses(findings, arm, rule, 'before')}"
    if arm in controls(findings.run):
        control = controls(findings.run)[arm]
        sentence += f" Against {control}, which was not paid for a map, the map "
        sentence += _clauses(findings, arm, rule, "control")
    return sentence


def _clauses(findings: ArmFindings, arm: str, rule: str, against: str) -> str:
    """Where the map went, and what the evidence does to the answer."""
    moved, totals, directs, rests = _rows(findings, arm, rule, against)
    by_how_much, share = intervals.text(moved, digits=None), _share(findings, arm, against)
    words = {1: "moved onto the evidence", -1: "moved off the evidence", 0: "is not seen to move"}
    return (
        f"{words.get(direction([moved]), 'was not measured')} on the same text ({by_how_much}); "
        f"the exact effect of the evidence on the answer {_agreed(totals)} ({_list(totals)} "
        f"logits), its direct write {_agreed(directs)} ({_list(directs)}), all other paths "
        f"{_agreed(rests)} ({_list(rests)}){_of_both(share)}."
    )


def _of_both(share: dict) -> str:
    """A clause on the evidence's share, where it has a number."""
    if not np.isfinite(share["lower"]):
        return ""
    text = intervals.text(share, digits=None)
    return f", its share of evidence and background {_agreed([share])} ({text})"


def reading(
    moved: int | None,
    total: int | None,
    direct: int | None,
    rest: int | None,
    *,
    is_paid: bool,
    share: int | None = None,
) -> str:
    """The reading of four directions together.

    Those of the map, of the evidence's total effect, of its direct write and of all other paths:
    each is 1, -1, or 0 where its interval, or one of them, includes 0; None where not measured. A
    map shows a share and no level, so that of the evidence in the effect of all patches goes with
    them, likewise.
    """
    if moved is None or total is None:
        return "Not enough was measured to say more."
    if moved <= 0:
        movement = "did not move measurably" if moved == 0 else "moved off the evidence"
        return {
            1: _unseen(share),
            0: f"The map {movement}, with no clear change of the effect.",
            -1: "The effect of the evidence fell.",
        }[total]
    if total > 0:
        return "The map moved, and the effect of the evidence grew with it."
    if direct == 1 and (total < 0 or rest == -1):
        sentence = (
            "The map looks better though the evidence does not matter more: only the direct part"
        )
        return f"{sentence} grew. That is reward hacking." if is_paid else f"{sentence} grew."
    return "The map moved; whether the effect of the evidence grew with it is not decided."


def _unseen(share: int | None) -> str:
    """The reading of an effect of the evidence that grew where its map did not move."""
    if share == 1:
        return "The evidence's share of the effect grew, and the map does not show it."
    with_it = {
        0: "is not seen to change",
        -1: "fell",
        None: "has no number, because evidence and background together may have had no effect",
    }[share]
    return f"The effect of the evidence grew; its share, which is what a map shows, {with_it}."


def _share(findings: ArmFindings, arm: str, against: str) -> dict:
    """Change of the evidence's share of evidence and background, mean embedding; or NaN."""
    group = f"exact effect on answer tokens, against the {REFERENCE_TITLES['mean']}"
    table = findings.changes
    if not ((table["group"] == group) & (table["quantity"] == EVIDENCE_SHARE)).any():
        return dict.fromkeys(("estimate", "lower", "upper"), np.nan)
    return _row(findings, arm, against, group, EVIDENCE_SHARE)


def _directions(findings: ArmFindings, arm: str, rule: str, against: str) -> tuple:
    moved, *effects = _rows(findings, arm, rule, against)
    return direction([moved]), *(direction(rows) for rows in effects)


def _rows(findings: ArmFindings, arm: str, rule: str, against: str) -> tuple:
    """Changes of the map's alignment; by reference, of total, direct write and other paths."""
    names = ("total", "direct write", "all other paths")
    groups = [f"exact effect on answer tokens, against the {t}" for t in REFERENCE_TITLES.values()]
    return _row(findings, arm, against, SAME, f"{RULE_TITLES[rule]} [share]"), *(
        [_row(findings, arm, against, group, f"evidence: {name} [logit]") for group in groups]
        for name in names
    )


def direction(rows: list[dict]) -> int | None:
    """1 or -1 where all intervals lie on that side of 0, else 0; None without intervals."""
    bounds = [(row["lower"], row["upper"]) for row in rows if np.isfinite(row["lower"])]
    if not bounds:
        return None
    if all(low > 0 for low, _ in bounds):
        return 1
    return -1 if all(high < 0 for _, high in bounds) else 0


def _rule(paid: str) -> str:
    """The rule whose map is told of: the paid one, or the paper's where none was paid for.

    Raises:
        ValueError: a rule without a title, of which nothing could be told.
    """
    if paid in ("none", ""):
        return "direct"
    if paid not in RULE_TITLES:
        raise ValueError(
            f"expected a rule of {tuple(RULE_TITLES)} as the training's map, got {paid!r}; give it "
            "a title in interp/vocabulary.py and measure the models again"
        )
    return paid


def _title(rule: str, paid: str) -> str:
    named = RULE_TITLES[rule][0].upper() + RULE_TITLES[rule][1:]
    return f"{named}, which it was paid for," if paid in RULE_TITLES else f"{named} (not paid for)"


def _agreed(rows: list[dict]) -> str:
    words = {1: "grew", -1: "fell", 0: "without a clear change"}
    return words.get(direction(rows), "was not measured")


def _list(rows: list[dict]) -> str:
    named = zip(REFERENCE_TITLES.values(), rows, strict=True)
    return "; ".join(f"{title} {intervals.text(row, digits=None)}" for title, row in named)


def _row(findings: ArmFindings, arm: str, against: str, group: str, quantity: str) -> dict:
    table = findings.changes
    is_it = (
        (table["arm"] == arm)
        & (table["against"] == against)
        & (table["group"] == group)
        & (table["quantity"] == quantity)
    )
    return table[is_it].iloc[0].to_dict()
