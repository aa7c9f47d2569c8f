"""The rule of docs/EXPERIMENT.md: what moves what the model uses. Needs no model."""

from dataclasses import dataclass

import numpy as np

from analyses.reports.experiment.crossed import Interval, Statistic, crossed, gap, share_of
from analyses.reports.experiment.results import Result, by_seed

ALPHA = 0.05
NOTHING = 0.05
"""Both intervals within ± this: the training does not move it."""
LEARNS = 0.1
"""What the control has to gain on its own scenes, or nothing is assessable."""
SEED = 20261128
CLAIMED = ("saliency-r1", "ease", "map-gradient")
"""Arms with both endpoints, over which Holm's procedure goes."""
SHARE, ACCURACY = "evidence's share of the exact effect", "right answers on broken cues"
ENDPOINTS = {SHARE: ("ordinary", "ordinary"), ACCURACY: ("shortcut", "broken")}
"""Primary endpoints: scenes of the training, and held-out scenes."""


@dataclass(frozen=True)
class Finding:
    """An arm against its placebo."""

    arm: str
    title: str
    gaps: dict[str, Interval]
    """By endpoint, arm minus placebo."""
    verdict: str


def statistic(
    runs: list[Result], key: tuple[str, str, str], endpoint: str, seeds: list[int]
) -> Statistic:
    """An endpoint of an arm, by seed.

    The share is Σ effect of the evidence / Σ (|effect of the evidence| + |of the background|):
    a background that writes against the answer lowers it.
    """
    scenes = ENDPOINTS[endpoint][1]
    if endpoint == ACCURACY:
        right = np.stack([by_seed(runs, key, scenes, "right")[s][0] for s in seeds])
        return share_of(right, np.ones_like(right))
    columns = [f"node {name} contrast" for name in ("evidence", "background")]
    found = by_seed(runs, key, scenes, *columns)
    evidence, background = (np.stack([found[s][k] for s in seeds]) for k in range(2))
    return share_of(evidence, np.abs(evidence) + np.abs(background))


def against(runs: list[Result], arm: str, other: str, endpoint: str) -> Interval | None:
    """Arm minus another, over the seeds that both have; None without one."""
    trained, scenes = ENDPOINTS[endpoint]
    keys = [("tiny", trained, name) for name in (arm, other)]
    done = [{run.facts["seed"] for run in runs if run.key == key} for key in keys]
    seeds = sorted(done[0] & done[1])
    if not seeds:
        return None
    difference = gap(*(statistic(runs, key, endpoint, seeds) for key in keys))
    return crossed(difference, strata(runs, keys[0], scenes), len(seeds), SEED)


def strata(runs: list[Result], key: tuple[str, str, str], scenes: str) -> np.ndarray:
    """The family of each image, in the order of `by_seed`."""
    table = next(run.tables[scenes] for run in runs if run.key == key)
    return table.sort_values("sample")["family"].to_numpy()


def find(runs: list[Result]) -> list[Finding]:
    """Every arm that has a placebo, with its verdict."""
    pairs = {
        run.facts["arm"]: (run.facts["title"], run.facts["placebo"])
        for run in runs
        if run.facts["placebo"]
    }
    gaps = {
        arm: {
            endpoint: found
            for endpoint in ENDPOINTS
            if (found := against(runs, arm, placebo, endpoint)) is not None
        }
        for arm, (_, placebo) in pairs.items()
    }
    held = holm({arm: both(gaps[arm]) for arm in CLAIMED if arm in gaps})
    is_assessable = learns(runs)
    return [
        Finding(arm, title, gaps[arm], verdict(gaps[arm], arm in held, is_assessable))
        for arm, (title, _) in pairs.items()
    ]


def both(gaps: dict[str, Interval]) -> float:
    """p of the claim that both endpoints are above 0; 1 where one is not, or is not there."""
    if set(gaps) != set(ENDPOINTS) or min(one.estimate for one in gaps.values()) <= 0:
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
    means = []
    for arm in ("before", "control"):
        found = by_seed(runs, ("tiny", "ordinary", arm), "ordinary", "right")
        if not found:
            return False
        means.append(np.mean([right.mean() for (right,) in found.values()]))
    return bool(means[1] - means[0] >= LEARNS)


def verdict(gaps: dict[str, Interval], is_held: bool, is_assessable: bool) -> str:
    """The rule's words for an arm."""
    if not is_assessable:
        return "not assessable"
    if set(gaps) != set(ENDPOINTS):
        return "exploratory: one endpoint"
    if is_held and all(one.lower > 0 for one in gaps.values()):
        return "moves what the model uses"
    if all(one.lower > -NOTHING and one.upper < NOTHING for one in gaps.values()):
        return "does not move it"
    return "not shown"
