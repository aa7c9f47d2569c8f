"""Rewards of GRPO, a file per part; `Reward` puts them together in the form that TRL calls."""

from train.rewards.composite import Reward
from train.rewards.parts import Parts

__all__ = ["Parts", "Reward"]
