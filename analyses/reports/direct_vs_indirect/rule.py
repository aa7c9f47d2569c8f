"""The rule of the verdict as numbers; RULE.md beside this file has its words."""

from hashlib import sha256
from pathlib import Path

RULE = Path(__file__).parent / "RULE.md"
SCENE_SEED = 20261126
PER_FAMILY = 115  # scenes that are measured, so that a hundred are usable
GAUGES = ("contrast", "centered")  # the headline first
GATE = 0.5  # logit
MOST_NEGATIVE = 0.10  # share of images with TE below -GATE
LEAST_IMAGES = 100
OVERALL = "over families"


def rule_hash() -> str:
    """SHA-256 of the rule's bytes."""
    return sha256(RULE.read_bytes()).hexdigest()


def games_path(path: Path) -> Path:
    """Where the run of the games lies, beside the report's."""
    return path.with_name(path.name + "-games")
