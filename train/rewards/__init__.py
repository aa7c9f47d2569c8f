"""Rewards of GRPO, a file per part; `Reward` puts them together in the form that TRL calls."""

from train.rewards.batch import Batch, Part, Written
from train.rewards.composite import Reward, Term, saliency_r1

__all__ = ["Batch", "Part", "Reward", "Term", "Written", "saliency_r1"]
