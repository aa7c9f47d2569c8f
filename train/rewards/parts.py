"""The parts of a completion's reward: accuracy, format, saliency."""

from dataclasses import dataclass

import xarray as xr


@dataclass(frozen=True)
class Parts:
    """Rewards of one completion before weights; `skipped` says why it has none."""

    accuracy: float = 0.0
    format: float = 0.0
    saliency: float = 0.0
    skipped: str = ""


def with_saliency(parts: Parts, score: xr.Dataset | str | None) -> Parts:
    """The parts with the saliency score of the text's map, or with the reason that there is none.

    Args:
        parts: accuracy and format.
        score: as `interp.scoring.scores` gives it; None where no map was asked for.
    """
    if isinstance(score, str):
        return Parts(skipped="not explained")
    if score is None or parts.skipped:
        return parts
    return Parts(parts.accuracy, parts.format, float(score["alignment"]))
