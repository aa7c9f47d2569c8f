"""A reward's metrics in the trainer's log: its parts, their controls, and how texts change."""

import math
from collections.abc import Iterable

import numpy as np

from interp.inputs.completions import Completion
from train.rewards.batch import Batch, Log, within_groups

LOGGED = {
    "alignment": "saliency/alignment",
    "chance": "saliency/chance",
    "alignment_shuffled": "saliency/shuffled",
    "border_share": "saliency/border",
    "border_area": "saliency/border_chance",
    "has_mass": "saliency/has_mass",
    "visual_attention": "saliency/visual_attention",
}


def mean(log_metric: Log, name: str, values: Iterable) -> None:
    """Logs the mean of what is defined under a name; nothing without such values."""
    values = [one for one in map(float, values) if not math.isnan(one)]
    if values:
        log_metric(name, sum(values) / len(values))


def of_groups(log_metric: Log, values: dict[str, list], batch: Batch) -> None:
    """How much each part can teach: its variance inside groups, and how it goes with accuracy.

    GRPO learns from differences inside a group alone (METHODS.md 5).
    """
    centred = {name: within_groups(column, batch) for name, column in values.items()}
    for name, own in centred.items():
        mean(log_metric, f"variance/{name}", own**2)
    accuracy = centred.get("accuracy")
    for name, own in centred.items():
        if name == "accuracy" or accuracy is None:
            continue
        both = np.isfinite(own) & np.isfinite(accuracy)
        if both.any() and own[both].std() > 0 and accuracy[both].std() > 0:
            log_metric(f"correlation/{name}", float(np.corrcoef(own[both], accuracy[both])[0, 1]))


def of_texts(log_metric: Log, texts: list[Completion]) -> None:
    """How texts change, which shows a reward that is hacked."""
    n_thinking = [len((one.thinking or "").split()) for one in texts]
    mean(log_metric, "text/tokens", [len(one.token_ids) for one in texts])
    mean(log_metric, "text/thinking_words", n_thinking)
    mean(log_metric, "text/empty_thinking", [n == 0 for n in n_thinking])
    mean(log_metric, "text/cut_off", [not one.is_complete for one in texts])
