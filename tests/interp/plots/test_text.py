"""Text of people and models is text in every figure: no formulas, no errors."""

import io
import warnings

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

from interp import plots
from interp.plots import fonts

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


def boxes(text):
    """Warnings of glyphs that are drawn as boxes, and what `missing` says of them."""
    figure, ax = plt.subplots()
    ax.set_title(text)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(io.BytesIO(), format="png")
    plt.close(figure)
    return [str(one.message) for one in caught if "Glyph" in str(one.message)], fonts.missing(
        [figure]
    )


@pytest.fixture
def forgotten():
    """Fonts are looked for anew."""
    for known in (fonts.families, fonts._characters):
        known.cache_clear()
    yield
    for known in (fonts.families, fonts._characters):
        known.cache_clear()


def test_characters_that_no_font_has_are_named(forgotten, caplog):
    warned, named = boxes("é 𒀀 −x\ufe0f\u200d")
    assert named == ["𒀀"]
    assert any("CUNEIFORM SIGN A" in one for one in warned)
    assert "figures show a box for 𒀀, which no installed font has" in caplog.text


def test_other_fonts_are_asked_for_what_the_first_lacks(forgotten, monkeypatch):
    """⌚ is in a font that matplotlib ships, and not in DejaVu Sans."""
    assert boxes("⌚")[1] == ["⌚"]
    monkeypatch.setattr(fonts, "FALLBACKS", ("no such font", "STIXGeneral"))
    fonts.families.cache_clear()
    fonts._characters.cache_clear()
    plots.use_style()
    assert fonts.families() == ("DejaVu Sans", "STIXGeneral")
    assert boxes("⌚") == ([], [])
