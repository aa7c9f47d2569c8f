"""Colours by meaning, and the style of all figures."""

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, NullFormatter

from interp.plots import fonts
from interp.vocabulary import PATH_CLASSES

# Okabe and Ito's colours, told apart by the colour-blind; ordered by lightness for print.
PATH_COLORS = {
    "total": "#000000",
    "direct": "#D55E00",
    "value_bias": "#CC79A7",
    "ffn": "#0072B2",
    "attention": "#009E73",
    "norm": "#999999",
    "routing": "#56B4E9",
    "mediated": "#E69F00",
    "self": "#CC79A7",
}
CLASS_COLORS = dict(zip(PATH_CLASSES, ("#D55E00", "#0072B2", "#E69F00"), strict=True))
CLASS_MARKERS = {"answer": ("#D55E00", "o"), "thinking": ("#0072B2", "^")}
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "text.parse_math": False,  # a dollar in a question is a dollar
    "svg.hashsalt": "interp",  # the same figure gets the same ids
    "savefig.dpi": 160,
}


def plain_logarithms(axis: Axis) -> None:
    """Writes a logarithmic axis' numbers without TeX, which the style takes for text."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def use_style() -> None:
    """Fonts, grid and text kept as text in PDF and SVG."""
    sns.set_theme(style="whitegrid", context="paper")
    # By name, because a generic family stands for a single font.
    plt.rcParams.update(STYLE | {"font.family": list(fonts.families())})
