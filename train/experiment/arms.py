"""Arms of the experiment: which reward or loss each trains on, its placebo, and its seeds.

Written down before the runs, with docs/EXPERIMENT.md; weights come from scenes of another seed.
"""

from dataclasses import dataclass, field

ORDINARY, SHORTCUT = "ordinary", "shortcut"
BEFORE = "before"
COLD, COLD3, ANCHORED = "tiny-cold", "tiny3-cold", "anchored"
NO_MAP = {"map": "none"}
GRADIENT = {"gradient_weight": 0.2, "gradient_map": "eq1"}
EASE = {"ease_weight": 0.3}


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Args:
        title: for pages.
        options: of `train.grpo`, besides those that all arms share.
        placebo: name of the arm that differs in the evidence alone.
        seeds: how many on ordinary scenes.
        shortcut_seeds: how many on scenes in which a shortcut pays.
        base: what is trained; "anchored" is `tiny-cold` with a <Focus> token, one by seed.
    """

    title: str
    options: dict = field(default_factory=dict)
    placebo: str | None = None
    seeds: int = 3
    shortcut_seeds: int = 0
    base: str = COLD


def _long(title: str, options: dict, placebo: str | None = None) -> Arm:
    return Arm(title, options, placebo, seeds=5, shortcut_seeds=3)


def _anchored(title: str, painted: str, placebo: str | None = None) -> Arm:
    options = NO_MAP | {"counterfactual": painted}
    return Arm(title, options, placebo, base=ANCHORED)


ARMS = {
    BEFORE: Arm("before training", seeds=1, shortcut_seeds=1),
    "control": _long("control", NO_MAP),
    "saliency-r1": _long("Saliency-R1's reward", {"map": "direct"}, "saliency-r1-rolled"),
    "saliency-r1-rolled": _long("its map, boxes rolled", {"map": "direct", "placebo": "rolled"}),
    "saliency-r1-random": Arm("a number drawn by text", {"map": "direct", "placebo": "random"}),
    "saliency-r1-length": Arm("the text's length", {"map": "direct", "placebo": "length"}),
    "effect": Arm("effect reward", {"map": "effect"}, "effect-rolled"),
    "effect-rolled": Arm("its map, boxes rolled", {"map": "effect", "placebo": "rolled"}),
    "ease": _long("EASE", NO_MAP | EASE, "ease-sham"),
    "ease-sham": _long("EASE, boxes elsewhere", NO_MAP | EASE | {"sham": True}),
    "faithful-mr1": _anchored("Faithful-MR1", "in-box", "faithful-mr1-outside"),
    "faithful-mr1-outside": _anchored("Faithful-MR1, painted outside", "out-of-box"),
    "map-gradient": _long("map gradient", NO_MAP | GRADIENT, "map-gradient-sham"),
    "map-gradient-sham": _long("map gradient, boxes elsewhere", NO_MAP | GRADIENT | {"sham": True}),
}
"""By name, in the order of the pages; the order of the runs is `runs.plan`'s."""

TINY3 = ("control", "ease", "map-gradient")
"""Arms that are trained once more from `tiny3-cold`, with `TINY3_SEEDS` seeds."""
TINY3_SEEDS = 3

CANDIDATES = {
    "control": {"": {}},
    "saliency-r1": {f"weight {w:g}": {"saliency_weight": w} for w in (1, 5)},
    "effect": {f"weight {w:g}": {"saliency_weight": w} for w in (1, 5)},
    "faithful-mr1": {f"weight {w:g}": {"counterfactual_weight": w} for w in (1, 5)},
    "ease": {f"weight {w:g}": {"ease_weight": w} for w in (0.03, 0.1, 0.3)},
    "map-gradient": {
        f"{rule} {w:g}": {"gradient_map": rule, "gradient_weight": w}
        for rule in ("eq1", "bottleneck")
        for w in (0.2, 0.5)
    },
}
"""What is tried of each arm on other scenes, before the runs, and changes its options."""
