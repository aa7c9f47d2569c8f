"""A reward's metrics in the trainer's log: its parts, their controls, and how texts change."""

import math
from collections.abc import Iterable

LOGGED = {
    "alignment": "saliency/alignment",
    "chance": "saliency/chance",
    "alignment_shuffled": "saliency/shuffled",
    "border_share": "saliency/border",
    "border_area": "saliency/border_chance",
    "has_mass": "saliency/has_mass",
    "visual_attention": "saliency/visual_attention",
}


def mean(log_metric, name: str, values: Iterable) -> None:
    """Logs the mean of what is defined under a name; nothing without such values."""
    values = [one for one in map(float, values) if not math.isnan(one)]
    if values:
        log_metric(name, sum(values) / len(values))
