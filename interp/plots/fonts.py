"""Glyphs: fonts for what DejaVu Sans lacks, and which characters no installed font has."""

import logging
from functools import cache

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

log = logging.getLogger(__name__)

# Outline fonts that people have; matplotlib cannot draw the bitmaps of colour fonts.
FALLBACKS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "Microsoft YaHei",
    "PingFang SC",
    "Hiragino Sans GB",
    "Arial Unicode MS",
    "Noto Emoji",
    "Segoe UI Emoji",
    "Symbola",
    "Noto Sans Symbols2",
    "Noto Sans Arabic",
    "Noto Sans Devanagari",
    "Unifont",
    "Unifont Upper",
)
INVISIBLE = range(0xFE00, 0xFE10)  # variation selectors; and joiners, which unicode calls "Cf"


@cache
def families() -> tuple[str, ...]:
    """Families to look for a glyph in, one after another: DejaVu Sans, and fallbacks there are."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ("DejaVu Sans", *(name for name in FALLBACKS if name in installed))


@cache
def _characters() -> frozenset[int]:
    """Code points that one of the families has."""
    found = [font_manager.get_font(font_manager.findfont(name)) for name in families()]
    return frozenset(code for font in found for code in font.get_charmap())


def missing(figures: list[Figure]) -> list[str]:
    """Characters of the figures' texts that no installed font has; a box is drawn for each."""
    texts = {text.get_text() for figure in figures for text in figure.findobj(Text)}
    used = {char for text in texts for char in text if char.isprintable()}
    unknown = {c for c in used if ord(c) not in _characters() and ord(c) not in INVISIBLE}
    if unknown:
        log.warning(
            "figures show a box for %s, which no installed font has; install Noto Sans CJK or "
            "Noto Emoji, say, and redraw",
            " ".join(sorted(unknown)),
        )
    return sorted(unknown)
