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
            "through what else the answer's own row computes of them, mostly its FFNs",
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


def headline(paths: pd.DataFrame) -> str | None:
    """One sentence with the estimates; None where no family has enough images."""
    chosen = usual(paths)
    if chosen is None:
        return None
    by_player = chosen.set_index("player")
    total = by_player["estimate"].sum()
    pieces = [
        f"{percent(by_player.loc[player])} of it travels {words}"
        if number == 0
        else f"{percent(by_player.loc[player])} {words}"
        for number, (player, words) in enumerate(PATH_WORDS.items())
    ]
    kind = chosen["partner"].iloc[0]
    return (
        f"Put another image in the image's place ({kind}) and the answer loses {total:.1f} logits "
        f"against that image's answer: {'; '.join(pieces)}."
    )


def usual(paths: pd.DataFrame) -> pd.DataFrame | None:
    """The rows of the headline: over families, contrast, live, the first partner kind."""
    rows = paths[(paths.family == OVERALL)]
    for name, value in CELL.items():
        rows = rows[rows[name] == value]
    return rows[rows.partner == rows.partner.iloc[0]] if len(rows) else None


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
                    "by_family": by_family.drop(OVERALL)[["decision", "reason"]].to_dict("index"),
                }
            )
    return rows


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
