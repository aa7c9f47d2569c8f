"""An estimate with its interval as text: one format for all pages, captions and sentences."""

from collections.abc import Mapping

import numpy as np
import xarray as xr

NOTHING = "–"


def text(interval: Mapping | xr.Dataset, name: str = "", *, digits: int | None = 2) -> str:
    """An estimate with its interval, as "0.52 [0.41, 0.60]"; one image has no interval.

    Args:
        interval: a table's row, or a dataset without dimensions.
        name: its columns are called "te", "te_lower" and "te_upper"; for a name that is empty or
            ends in _, "first_estimate", "first_lower" and "first_upper".
        digits: behind the point; None for two, or three where both bounds are below 0.1.
    """
    names = (name or "estimate", f"{name}_lower", f"{name}_upper")
    if not name or name.endswith("_"):
        names = tuple(f"{name}{end}" for end in ("estimate", "lower", "upper"))
    estimate, lower, upper = (float(interval[key]) for key in names)
    if np.isnan(estimate):
        return NOTHING
    if digits is None:
        digits = 3 if max(abs(lower), abs(upper)) < 0.1 else 2
    if np.isnan(lower):
        return f"{number(estimate, digits)} [{NOTHING}]"
    return f"{number(estimate, digits)} [{number(lower, digits)}, {number(upper, digits)}]"


def number(value: float, digits: int = 2) -> str:
    """A rounded number as text, with a true minus sign and never a negative zero."""
    rounded = f"{value:.{digits}f}"
    is_zero = not rounded.strip("-0.")
    return rounded.lstrip("-") if is_zero else rounded.replace("-", "−")
