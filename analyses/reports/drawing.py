"""Figures of the reports: palette, dots with intervals, saving."""

import base64
import io
import warnings
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLACK = "#000000"
COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's, told apart by the colour-blind."""
MARKERS = "os^vDPX*<>hdp8H1"
UNDATED = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
"""Formats besides PNG. Without a date the same run redraws to the same file."""


def dots(
    ax: Axes,
    tables: dict[str, pd.DataFrame],
    rows: list[str],
    by: str,
    *,
    colors: tuple[str, ...] = COLORS,
) -> None:
    """Estimates with their intervals: a line per row, a mark per table.

    Args:
        ax: where to draw.
        tables: estimate, lower and upper by the column `by`, under the names of the legend.
        rows: values of that column, from top to bottom.
        by: the column.
        colors: one for each table.
    """
    for k, (name, table) in enumerate(tables.items()):
        estimates = table.set_index(by).loc[rows]
        reach = (
            np.abs(estimates[["lower", "upper"]].sub(estimates["estimate"], axis=0)).to_numpy().T
        )
        at = np.arange(len(rows)) + (k - (len(tables) - 1) / 2) * 0.6 / max(3, len(tables))
        color, marker = colors[k % len(colors)], MARKERS[k % len(MARKERS)]
        ax.errorbar(
            estimates["estimate"],
            at,
            xerr=reach,
            fmt=marker,
            color=color,
            markersize=4,
            capsize=2,
            label=name,
        )
    ax.set_yticks(np.arange(len(rows)), rows)
    ax.set_ylim(len(rows) - 0.5, -0.5)


def in_gauge(figure: Figure | None, gauge: str) -> Figure | None:
    """The figure; where its axes are in logits they say above what, for whom has no caption."""
    for ax in [] if figure is None else figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_label_text(axis.get_label_text().replace("[logit]", f"[logit, {gauge}]"))
    return figure


def save(figures: dict[str, Figure], folder: Path) -> dict[str, str]:
    """Saves each figure as PDF, SVG and PNG; returns the PNGs as base64, for a page."""
    images = {}
    for name, figure in figures.items():
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # `fonts.missing` says it once
            figure.savefig(buffer, format="png")
            figure.set_layout_engine("none")  # the layout is the PNG's; it costs as much as drawing
            for suffix, metadata in UNDATED.items():
                figure.savefig(folder / f"{name}.{suffix}", metadata=metadata)
        (folder / f"{name}.png").write_bytes(buffer.getvalue())
        images[name] = base64.b64encode(buffer.getvalue()).decode()
        plt.close(figure)
    return images
