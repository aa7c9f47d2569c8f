"""Runs of the experiment: their names, their scenes, and the commands that train them."""

from dataclasses import dataclass, field
from pathlib import Path

from train.experiment.arms import (
    ARMS,
    BEFORE,
    CANDIDATES,
    COLD,
    COLD3,
    ORDINARY,
    SHORTCUT,
    TINY3,
    TINY3_SEEDS,
)

CONFIG = "train/configs/tiny-direct.yaml"
HELD_OUT = {"experiment": 20261128, "calibration": 912}
"""Seeds of the scenes on which runs are measured."""
SCENES = {"experiment": 1000, "calibration": 2000}
"""What is added to a run's seed for that of the scenes it is trained on."""
N_HELD_OUT = {"experiment": 200, "calibration": 100}


@dataclass(frozen=True)
class Run:
    """One training with its measures."""

    arm: str
    scenes: str
    seed: int
    stage: str = "experiment"
    base: str = COLD
    label: str = ""
    options: dict = field(default_factory=dict)
    """Instead of the arm's own."""

    @property
    def name(self) -> str:
        """A file's name, one for every run."""
        parts = [self.arm, self.label.replace(" ", "-"), self.scenes, str(self.seed)]
        parts.insert(0, "tiny3" if self.base == COLD3 else "")
        parts.insert(0, self.stage if self.stage != "experiment" else "")
        return "_".join(one for one in parts if one)

    def command(self, base: str, out: Path) -> list[str]:
        """Arguments of `train.grpo`."""
        options = {
            "config": CONFIG,
            "model_name_or_path": base,
            "output_dir": str(out),
            "seed": self.seed,
            "sample_seed": SCENES[self.stage] + self.seed,
            "split": "train" if self.scenes == ORDINARY else SHORTCUT,
            **ARMS[self.arm].options,
            **self.options,
        }
        return [part for name, value in options.items() for part in (f"--{name}", str(value))]


def plan() -> list[Run]:
    """All runs, those that the primary endpoints rest on first, seed by seed."""
    found = []
    for seed in range(max(arm.seeds for arm in ARMS.values())):
        for name, arm in ARMS.items():
            if arm.shortcut_seeds and seed < arm.seeds:
                found.append(_run(name, ORDINARY, seed))
                if seed < arm.shortcut_seeds:
                    found.append(_run(name, SHORTCUT, seed))
    for seed in range(max(arm.seeds for arm in ARMS.values())):
        found += [
            _run(name, ORDINARY, seed)
            for name, arm in ARMS.items()
            if not arm.shortcut_seeds and seed < arm.seeds
        ]
    found.append(Run(BEFORE, ORDINARY, 0, base=COLD3))
    for seed in range(TINY3_SEEDS):
        found += [Run(name, ORDINARY, seed, base=COLD3) for name in TINY3]
    return found


def calibration() -> list[Run]:
    """Every candidate of every arm, one seed, on scenes of its own."""
    return [
        Run(
            arm, ORDINARY, 0, stage="calibration", base=ARMS[arm].base, label=label, options=options
        )
        for arm, candidates in CANDIDATES.items()
        for label, options in candidates.items()
    ]


def _run(name: str, scenes: str, seed: int) -> Run:
    return Run(name, scenes, seed, base=ARMS[name].base)
