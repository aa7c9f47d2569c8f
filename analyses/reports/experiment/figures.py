"""Findings on trainings → figures."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.reports.drawing import BLACK, COLORS
from analyses.reports.experiment.quantities import ACCURACY, ALIGNED, RIGHT, SHARE, WORDS, Quantity
from interp import plots

PANELS: dict[str, Quantity] = {
    "the answer\nright, ordinary scenes": RIGHT,
    "the map\nalignment, Saliency-R1's": ALIGNED["bottleneck"],
    "the map\nalignment, Eq. 1": ALIGNED["direct"],
    "the effect: primary\nevidence's share, exact": SHARE,
    "the words\nshare of the image's effect": WORDS,
    "the shortcut: primary\nright on broken cues": ACCURACY,
}
OURS, SHAM, LINE = COLORS[0], COLORS[1], "#777777"


def draw(table: pd.DataFrame, chances: dict[str, float]) -> dict[str, Figure | None]:
    """Every figure by name.

    Args:
        table: as `findings.table` gives it.
        chances: by quantity, what a map scores that knows nothing.
    """
    plots.use_style()
    return {"arms": arms(table, chances), "beyond": beyond(table)}


def arms(table: pd.DataFrame, chances: dict[str, float]) -> Figure:
    """Arms × endpoints: each arm with its placebo, beside the control and the model before."""
    levels = table.query("against == '' and base == 'tiny'")
    rows, placebos = paired(table)
    figure, axes = plt.subplots(
        1, len(PANELS), figsize=(13, 0.5 * len(rows) + 1.9), sharey=True, layout="constrained"
    )
    for ax, (title, quantity) in zip(axes, PANELS.items(), strict=True):
        own = levels[levels["quantity"] == quantity.title].set_index("arm")
        for k, arm in enumerate(rows):
            _dot(ax, own, arm, k - 0.12, OURS, "o")
            _dot(ax, own, placebos.get(arm), k + 0.18, SHAM, "s")
        _line(ax, own, "before", ":")
        _line(ax, own, "control", "--")
        if quantity.title in chances:
            ax.axvline(chances[quantity.title], color=BLACK, linewidth=0.8)
        ax.set_title(title, fontsize=9)
    titles = table.drop_duplicates("arm").set_index("arm")["title"]
    axes[0].set_yticks(np.arange(len(rows)), [titles[arm] for arm in rows])
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    _legend(figure)
    return figure


def beyond(table: pd.DataFrame) -> Figure | None:
    """The two primary endpoints, arm minus placebo, with every seed."""
    gaps = table.query("against == 'placebo' and base == 'tiny' and is_primary")
    if gaps.empty:
        return None
    rows, _ = paired(table)
    figure, axes = plt.subplots(
        1, 2, figsize=(8, 0.45 * len(rows) + 1.2), sharey=True, layout="constrained"
    )
    titles = table.drop_duplicates("arm").set_index("arm")["title"]
    for ax, quantity in zip(axes, (SHARE, ACCURACY), strict=True):
        own = gaps[gaps["quantity"] == quantity.title].set_index("arm")
        for k, arm in enumerate(rows):
            _dot(ax, own, arm, k, OURS, "o")
        ax.axvline(0, color=BLACK, linewidth=0.8)
        ax.set_title(f"{quantity.title.split(' [')[0]}\narm minus placebo", fontsize=9)
    axes[0].set_yticks(np.arange(len(rows)), [titles[arm] for arm in rows])
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    return figure


def paired(table: pd.DataFrame) -> tuple[list[str], dict[str, str]]:
    """Arms that have a placebo, in the order of the plan, and the placebo of each."""
    known = table.query("base == 'tiny'").drop_duplicates("arm").set_index("arm")
    known = known[known["placebo"].notna()].sort_values("place")
    return known.index.tolist(), known["placebo"].to_dict()


def _dot(ax: Axes, levels: pd.DataFrame, arm: str | None, at: float, color: str, mark: str) -> None:
    if arm not in levels.index:
        return
    row = levels.loc[arm]
    reach = [[row["estimate"] - row["lower"]], [row["upper"] - row["estimate"]]]
    ax.errorbar(row["estimate"], at, xerr=reach, fmt=mark, color=color, markersize=4.5, capsize=2)


def _line(ax: Axes, levels: pd.DataFrame, arm: str, style: str) -> None:
    if arm in levels.index:
        ax.axvline(levels.loc[arm, "estimate"], color=LINE, linestyle=style, linewidth=1)


def _legend(figure: Figure) -> None:
    marks = [
        plt.Line2D([], [], color=OURS, marker="o", linestyle="", label="arm"),
        plt.Line2D([], [], color=SHAM, marker="s", linestyle="", label="its placebo"),
        plt.Line2D([], [], color=LINE, linestyle="--", label="control"),
        plt.Line2D([], [], color=LINE, linestyle=":", label="before training"),
        plt.Line2D([], [], color=BLACK, linewidth=0.8, label="chance"),
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=5)
