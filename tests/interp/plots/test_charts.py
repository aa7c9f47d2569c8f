"""Charts of intervals: what a reader finds where a number is missing."""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

from interp import plots

SETS, CLASSES = ["image", "question"], ["answer", "thinking"]


def interval(estimates) -> xr.Dataset:
    dims = ("source_set", "token_class")
    middle = xr.DataArray(np.array(estimates), coords=dict(zip(dims, (SETS, CLASSES), strict=True)))
    return xr.Dataset({"estimate": middle, "lower": middle - 0.1, "upper": middle + 0.1})


def words(data: xr.Dataset) -> set[str]:
    _, ax = plt.subplots()
    try:
        plots.shares(data, ax)
        return {text.get_text() for text in ax.texts}
    finally:
        plt.close()


def test_a_missing_share_says_why_as_the_table_does():
    missing = interval([[0.4, np.nan], [np.nan, 0.2]])
    assert words(missing) == {"no share"}
    readings = [["share", "no effect"], ["undecided", "share"]]
    named = missing.assign(reading=(("source_set", "token_class"), readings))
    assert words(named) == {"no effect", "undecided"}
    assert words(interval([[0.4, 0.3], [0.1, 0.2]])) == set()
