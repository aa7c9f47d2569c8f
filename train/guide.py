"""Options of the losses beside GRPO's own, and the losses that they name."""

from dataclasses import dataclass, field

from train.losses import Ease, MapGradient
from train.losses.ease import DIRECTIONS, HEADS, MIXTURES
from train.losses.map_gradient import MASSES, RULES


@dataclass
class Guide:
    """Terms that are added to GRPO's loss (METHODS.md 5)."""

    ease_weight: float = field(default=0.0, metadata={"help": "EASE's λ; the paper's is 0.001"})
    ease_layer: int | None = field(default=None, metadata={"help": "⌊2L/3⌋ by default"})
    ease_heads: str = field(default="mean", metadata={"help": f"one of {HEADS}"})
    ease_direction: str = field(default="attention", metadata={"help": f"one of {DIRECTIONS}"})
    ease_mixture: str = field(default="equal", metadata={"help": f"one of {MIXTURES}"})
    ease_rows: int = field(default=64, metadata={"help": "response rows of a completion"})
    gradient_weight: float = field(default=0.0, metadata={"help": "λ of the map gradient"})
    gradient_map: str = field(default="eq1", metadata={"help": f"one of {RULES}"})
    gradient_mass: str = field(default="absolute", metadata={"help": f"one of {MASSES}"})
    tau: float = field(default=0.5, metadata={"help": "least accuracy of a text that counts"})
    per_gated: bool = field(default=True, metadata={"help": "mean over those; else over all"})
    sham: bool = field(default=False, metadata={"help": "boxes stand elsewhere: the placebo"})


def losses_of(guide: Guide) -> list[Ease | MapGradient]:
    """The losses whose weight is not 0.

    Raises:
        ValueError: an option by another name, or a sham of nothing.
    """
    gate = {"tau": guide.tau, "per_gated": guide.per_gated, "is_sham": guide.sham}
    losses: list[Ease | MapGradient] = []
    if guide.ease_weight:
        losses.append(
            Ease(
                weight=guide.ease_weight,
                layer=guide.ease_layer,
                heads=guide.ease_heads,
                direction=guide.ease_direction,
                mixture=guide.ease_mixture,
                max_rows=guide.ease_rows,
                **gate,
            )
        )
    if guide.gradient_weight:
        losses.append(
            MapGradient(
                weight=guide.gradient_weight,
                rule=guide.gradient_map,
                mass=guide.gradient_mass,
                **gate,
            )
        )
    if guide.sham and not losses:
        raise ValueError("expected ease_weight or gradient_weight with sham, got neither")
    return losses


def told(guide: Guide) -> dict:
    """Facts about the losses, for whoever reads the adapter."""
    return dict(vars(guide))
