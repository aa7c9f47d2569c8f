"""The verdict in plain words, for a reader who has not read the paper. Needs no model."""

import pandas as pd

from analyses.reports import intervals
from analyses.reports.direct_vs_indirect.judging import Verdicts
from analyses.reports.direct_vs_indirect.rule import OVERALL
from interp.vocabulary import PLAYERS

CELL = {"gauge": "contrast", "norm": "live"}
PATH_WORDS = dict(
    zip(
        PLAYERS,
        (
            "straight from the image's tokens into the answer's logit (Eq. 1)",
            "through what else the answer's own row computes of them (FFNs, attention)",
            "through other tokens that carried the image's content",
            "through the words that the model wrote before its answer",
        ),
        strict=True,
    )
)
CLAIMS = {
    ("first", "direct"): "The text held fixed: is the direct write more than half?",
    ("second", "direct"): "The words a player: is the direct write more than half?",
    ("second", "direct, with the choice of words"): (
        "The same, with the direct write's part in choosing the words"
    ),
    ("second", "words"): "The words a player: are the words more than half?",
}


def is_assessable(verdicts: Verdicts) -> bool:
    """Whether the second game over families has an effect that may be shared out."""
    found = verdicts.judgements
    row = found[(found.game == "second") & (found.claim == "direct") & (found.family == OVERALL)]
    return bool(row.decision.isin(["supported", "refuted", "not shown"]).all())


def headlines(paths: pd.DataFrame, verdicts: Verdicts) -> list[str]:
    """One sentence per kind of partner, with the estimates; none where there is no verdict."""
    if not is_assessable(verdicts):
        return []
    return [_headline(rows, verdicts.gates) for rows in usual(paths)]


def _headline(chosen: pd.DataFrame, gates: pd.DataFrame) -> str:
    by_player, kind = chosen.set_index("player"), chosen["partner"].iloc[0]
    at = (gates.game == "second") & (gates.family == OVERALL) & (gates.by == kind)
    total = intervals.text(gates[at & (gates.gauge == CELL["gauge"])].iloc[0], digits=1)
    pieces = [
        f"{percent(by_player.loc[player])} of it travels {words}"
        if number == 0
        else f"{percent(by_player.loc[player])} {words}"
        for number, (player, words) in enumerate(PATH_WORDS.items())
    ]
    return (
        f"Put another image in the image's place ({kind}) and the answer loses {total} logits "
        f"against that image's answer: {'; '.join(pieces)}."
    )


def usual(paths: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows of the headlines by kind of partner: over families, contrast gauge, live norm."""
    rows = paths[(paths.family == OVERALL)]
    for name, value in CELL.items():
        rows = rows[rows[name] == value]
    return [group for _, group in rows.groupby("partner", sort=False)]


def percent(row: pd.Series) -> str:
    """A share with its interval, in per cent."""
    ends = (100 * row[f"share_{end}"] for end in ("estimate", "lower", "upper"))
    estimate, low, high = (intervals.number(end, 0) for end in ends)
    return f"{estimate} % [{low}, {high}]"


def verdict_rows(verdicts: Verdicts) -> list[dict]:
    """One row per question of the rule: the decision over families, and by family."""
    rows = []
    found = verdicts.judgements
    for (game, claim), title in CLAIMS.items():
        own = found[(found.game == game) & (found.claim == claim)]
        for token_class, group in own.groupby("token_class", sort=False):
            by_family = group.set_index("family")
            over = by_family.loc[OVERALL]
            rows.append(
                {
                    "question": title,
                    "token_class": token_class,
                    "decision": over.decision,
                    "reason": over.reason,
                    "strict": over.strict_decision,
                    "families": over.families,
                    "n": _count(verdicts.gates, game, token_class),
                    "by_family": by_family.drop(OVERALL)[["decision", "reason"]].to_dict("index"),
                }
            )
    return rows


def _count(gates: pd.DataFrame, game: str, token_class: str) -> int:
    """Images of every kind of question that a verdict over families rests on."""
    own = gates[(gates.game == game) & (gates.token_class == token_class)]
    return int(own[own.family == OVERALL].n.min())


def disagreement(verdicts: Verdicts) -> str | None:
    """Whether crediting the choice of words changes the verdict on the direct write."""
    found = verdicts.judgements
    second = found[(found.game == "second") & (found.family == OVERALL)].set_index("claim")
    plain, credited = (
        second.loc[claim, "decision"] for claim in ("direct", "direct, with the choice of words")
    )
    if plain == credited:
        return None
    return (
        "Credited with its part in choosing the words, the direct write gets another verdict: "
        f"{credited} instead of {plain}."
    )
