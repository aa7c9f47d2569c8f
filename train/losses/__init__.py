"""Losses beside GRPO's own, a file each; `GuidedTrainer` adds them to the policy's own forward."""

from train.losses.ease import Ease
from train.losses.map_gradient import MapGradient
from train.losses.trainer import GuidedTrainer

__all__ = ["Ease", "GuidedTrainer", "MapGradient"]
