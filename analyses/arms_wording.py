"""Did the map move because the effect moved? In plain words, from tables alone."""

import numpy as np

from analyses.arms_findings import REFERENCE_TITLES, RULE_TITLES, ArmFindings

SAME = "alignment, same text"


def sentences(found: ArmFindings) -> list[tuple[str, str]]:
    """(model, what its training did) for every model after training."""
    return [(arm, _sentence(found, arm)) for arm in found.after]


def _sentence(found: ArmFindings, arm: str) -> str:
    paid = found.run.attrs["arms"][arm]["map"]
    rule = "direct" if paid == "none" else paid
    quantity = f"{RULE_TITLES[rule]} [share]"
    moved = _row(found, arm, SAME, quantity)
    effects = [
        _row(found, arm, group, "evidence: total [logit]") for group in _exact(found, "answer")
    ]
    directs = [
        _row(found, arm, group, "evidence: direct write [logit]")
        for group in _exact(found, "answer")
    ]
    said = f"{_title(rule, paid)} {_moved(moved)} on the same text ({text(moved)}); "
    said += "the exact effect of the evidence on the answer "
    said += f"{_agreed(effects)} ({_list(effects)} logits), its direct write {_agreed(directs)} "
    said += f"({_list(directs)}). "
    return said + reading(direction([moved]), direction(effects), direction(directs))


def reading(moved: int | None, effect: int | None, direct: int | None) -> str:
    """What three directions mean together: of the map, of the total effect, of the direct write.

    Each is 1, -1, or 0 where its interval, or one of them, includes 0; None where not measured.
    """
    if moved is None or effect is None:
        return "Not enough was measured to say more."
    if moved == 0:
        return "The map did not move measurably, so there is nothing to explain."
    if moved < 0:
        return "The map moved off the evidence."
    if effect > 0:
        return "The map moved onto the evidence, and the effect of the evidence grew with it."
    if direct is not None and direct > 0:
        return (
            "Only the direct part moved: the map looks better, the evidence does not matter more. "
            "That is reward hacking."
        )
    return (
        "The map moved onto the evidence though neither its effect nor its direct write is seen to "
        "grow: the score rose without the evidence mattering more."
    )


def direction(rows: list[dict]) -> int | None:
    """1 or -1 where all intervals lie on that side of 0, else 0; None without intervals."""
    bounds = [(row["lower"], row["upper"]) for row in rows if np.isfinite(row["lower"])]
    if not bounds:
        return None
    if all(low > 0 for low, _ in bounds):
        return 1
    return -1 if all(high < 0 for _, high in bounds) else 0


def text(row: dict, digits: int = 2) -> str:
    """An estimate with its interval."""
    if not np.isfinite(row["lower"]):
        return "–"
    return f"{row['estimate']:.{digits}f} [{row['lower']:.{digits}f}, {row['upper']:.{digits}f}]"


def _title(rule: str, paid: str) -> str:
    named = RULE_TITLES[rule][0].upper() + RULE_TITLES[rule][1:]
    return f"{named} (not paid for)" if paid == "none" else f"{named}, which it was paid for,"


def _moved(row: dict) -> str:
    words = {1: "moved onto the evidence", -1: "moved off the evidence", 0: "did not move"}
    return words.get(direction([row]), "was not measured")


def _agreed(rows: list[dict]) -> str:
    words = {1: "grew", -1: "fell", 0: "is not seen to change one way"}
    return words.get(direction(rows), "was not measured")


def _list(rows: list[dict]) -> str:
    named = zip(REFERENCE_TITLES.values(), rows, strict=True)
    return "; ".join(f"{title} {text(row)}" for title, row in named)


def _exact(found: ArmFindings, token_class: str) -> list[str]:
    return [
        f"exact effect on {token_class} tokens, against the {title}"
        for title in REFERENCE_TITLES.values()
    ]


def _row(found: ArmFindings, arm: str, group: str, quantity: str) -> dict:
    table = found.changes
    is_it = (
        (table["arm"] == arm) & (table["against"] == found.before)
        & (table["group"] == group) & (table["quantity"] == quantity)
    )  # fmt: skip
    return table[is_it].iloc[0].to_dict()
