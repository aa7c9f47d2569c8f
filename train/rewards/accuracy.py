"""Accuracy and format: what a reward pays for the answer, whatever the model looked at."""

from train.rewards.batch import Batch, Log


class Accuracy:
    """The judge's verdict (METHODS.md 5)."""

    name = "accuracy"
    reads_maps = False

    def __call__(self, batch: Batch, _log: Log) -> list[float | None]:
        """1 for a right answer, 0 for a wrong one."""
        return [one.accuracy for one in batch.written]


class Format:
    """Exactly one <think>…</think>, an answer behind it, and the end token (METHODS.md 5)."""

    name = "format"
    reads_maps = False

    def __call__(self, batch: Batch, _log: Log) -> list[float | None]:
        """1 for the form that is asked for, else 0."""
        return [float(one.is_well_formed) for one in batch.written]
