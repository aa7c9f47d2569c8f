"""The rule of docs/EXPERIMENT.md: what moves what the model uses. Needs no model."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analyses.reports.experiment.crossed import Interval, Statistic, crossed, gap, share_of
from analyses.reports.experiment.quantities import EXPLORATORY, PRIMARY, RIGHT, Quantity
from analyses.reports.experiment.results import Result, by_seed, strata

ALPHA = 0.05
NOTHING = 0.05
"""Both intervals within ± this: the training does not move it."""
LEARNS = 0.1
"""What the control has to gain on ordinary scenes, or nothing is assessable."""
SEED = 20261128
CLAIMED = ("saliency-r1", "ease", "map-gradient")
"""Arms with both endpoints, over which Holm's procedure goes."""
MOVES, STAYS = "moves what the model uses", "does not move it"
UNKNOWN, UNASSESSABLE = "not shown", "not assessable"
HALF = "exploratory: one endpoint"
MISSING = "not judged: runs are missing"


@dataclass(frozen=True)
class Finding:
    """An arm against its placebo."""

    arm: str
    title: str
    gaps: dict[str, Interval]
    """By the title of a primary endpoint, arm minus placebo."""
    verdict: str


def find(runs: list[Result]) -> list[Finding]:
    """Every arm that has a placebo, with its verdict."""
    pairs = {
        run.facts["arm"]: (run.facts["title"], run.facts["placebo"])
        for run in sorted(runs, key=lambda one: one.facts["place"])
        if run.facts["placebo"] and run.key[0] == "tiny"
    }
    gaps = {
        arm: {
            quantity.title: found
            for quantity in PRIMARY
            if (found := against(runs, arm, placebo, quantity)) is not None
        }
        for arm, (_, placebo) in pairs.items()
    }
    held = holm({arm: claimed(gaps.get(arm, {})) for arm in CLAIMED})
    if not all(is_whole(gaps.get(arm, {})) for arm in CLAIMED):
        known = dict.fromkeys(CLAIMED, MISSING)
    elif not learns(runs):
        known = dict.fromkeys(CLAIMED, UNASSESSABLE)
    else:
        known = {arm: verdict(gaps[arm], arm in held) for arm in CLAIMED}
    return [
        Finding(arm, title, gaps[arm], known.get(arm, HALF)) for arm, (title, _) in pairs.items()
    ]


def is_whole(gaps: dict[str, Interval]) -> bool:
    """Whether both endpoints are there, with all seeds of the plan."""
    return all(one.title in gaps and len(gaps[one.title].seeds) >= one.n_seeds for one in PRIMARY)


def statistic(
    runs: list[Result], key: tuple[str, str, str], quantity: Quantity, seeds: list[int]
) -> Statistic:
    """A quantity of an arm, by seed."""
    found = by_seed(runs, key, quantity)
    part, whole = np.stack([found[seed] for seed in seeds], axis=1)
    return share_of(part, whole)


def against(
    runs: list[Result], arm: str, other: str, quantity: Quantity, base: str = "tiny"
) -> Interval | None:
    """Arm minus another, over the seeds that both have; None without one."""
    keys = [(base, quantity.trained, name) for name in (arm, other)]
    done = [set(by_seed(runs, key, quantity)) for key in keys]
    seeds = sorted(done[0] & done[1])
    if not seeds:
        return None
    difference = gap(*(statistic(runs, key, quantity, seeds) for key in keys))
    return crossed(difference, strata(runs, keys[0], quantity), len(seeds), SEED)


def level(runs: list[Result], arm: str, quantity: Quantity, base: str = "tiny") -> Interval | None:
    """A quantity in an arm, over its seeds; None without one."""
    key = (base, quantity.trained, arm)
    seeds = sorted(by_seed(runs, key, quantity))
    if not seeds:
        return None
    return crossed(
        statistic(runs, key, quantity, seeds), strata(runs, key, quantity), len(seeds), SEED
    )


def table(runs: list[Result]) -> pd.DataFrame:
    """Every quantity of every arm: its level, and the arm minus placebo and minus control."""
    rows = []
    arms = {(run.key[0], run.facts["arm"]): run.facts for run in runs}
    for (base, arm), facts in arms.items():
        others = {"": None, "placebo": facts["placebo"], "control": "control"}
        for quantity in (*PRIMARY, *EXPLORATORY):
            for against_what, other in others.items():
                if against_what and other in (None, arm):
                    continue
                found = (
                    against(runs, arm, other, quantity, base)
                    if other
                    else level(runs, arm, quantity, base)
                )
                if found is not None:
                    row = {name: facts[name] for name in ("arm", "title", "placebo", "place")}
                    row |= {"base": base}
                    row |= {"quantity": quantity.title, "group": quantity.group}
                    row |= {"against": against_what, "is_primary": quantity in PRIMARY}
                    rows.append(row | _numbers(found))
    return pd.DataFrame(rows)


def _numbers(found: Interval) -> dict:
    return {
        "estimate": found.estimate,
        "lower": found.lower,
        "upper": found.upper,
        "n_seeds": len(found.seeds),
        "least": min(found.seeds),
        "largest": max(found.seeds),
    }


def claimed(gaps: dict[str, Interval]) -> float:
    """p of the claim that both endpoints are above 0; 1 where one is not, or is not there."""
    if len(gaps) < len(PRIMARY) or min(one.estimate for one in gaps.values()) <= 0:
        return 1.0
    return max(one.p for one in gaps.values())


def holm(p_values: dict[str, float], alpha: float = ALPHA) -> set[str]:
    """Names whose hypothesis Holm's procedure rejects."""
    held: set[str] = set()
    for number, (name, p) in enumerate(sorted(p_values.items(), key=lambda one: one[1])):
        if p > alpha / (len(p_values) - number):
            break
        held.add(name)
    return held


def learns(runs: list[Result]) -> bool:
    """Whether the control answers ordinary scenes better than the model before training."""
    before, after = (level(runs, arm, RIGHT) for arm in ("before", "control"))
    return before is not None and after is not None and after.estimate - before.estimate >= LEARNS


def verdict(gaps: dict[str, Interval], is_held: bool) -> str:
    """The rule's words for an arm with both endpoints."""
    if is_held and all(one.lower > 0 for one in gaps.values()):
        return MOVES
    if all(one.lower > -NOTHING and one.upper < NOTHING for one in gaps.values()):
        return STAYS
    return UNKNOWN
