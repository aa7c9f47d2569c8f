"""Text of people and models is text in every figure: no formulas, no errors."""

import io

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

from interp import plots

TEXTS = (
    "$",
    "$$",
    "$\\frac$",
    "\\frac{",
    "^",
    "_",
    "x^2_",
    "<b>&amp;</b>",
    "100 % & #1",
    "{}",
    "$x",
)


@pytest.fixture(autouse=True)
def style():
    with mpl.rc_context():
        plots.use_style()
        yield


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_of_any_signs_is_drawn_as_it_is(text):
    values = xr.DataArray(
        np.array([1.0, -1.0]),
        dims="target",
        coords={
            "target_token": ("target", [text, "x"]),
            "target_role": ("target", ["thinking", "answer"]),
        },
    )
    figure, ax = plt.subplots()
    plots.token_strip(values, ax)
    ax.set_title(text)
    figure.suptitle(f"is it {text} or not?")
    for kind in ("png", "svg"):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind)
        assert len(buffer.getvalue()) > 1000
    assert text in [one.get_text() for one in ax.texts]
    plt.close(figure)
