"""The four paths as pictures: a drawing with shares on its arrows, bars by family, and cells."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from analyses.reports import intervals
from analyses.reports.direct_vs_indirect.game_tables import cell_name
from analyses.reports.direct_vs_indirect.game_words import CELL, is_assessable, percent, usual
from analyses.reports.direct_vs_indirect.judging import Verdicts
from analyses.reports.direct_vs_indirect.rule import LEAST_IMAGES, OVERALL
from interp import plots
from interp.vocabulary import PLAYERS

COLORS = dict(zip(PLAYERS, ("#D55E00", "#0072B2", "#E69F00", "#009E73"), strict=True))
SHORT = dict(
    zip(PLAYERS, ("direct (Eq. 1)", "rest of the row", "other tokens", "words"), strict=True)
)
PLACES = {"image": (0.08, 0.5), "logit": (0.94, 0.5)}
STOPS = {"rest of the row": (0.5, 0.70), "other positions": (0.5, 0.30), "words": (0.5, 0.09)}
STATIONS = {
    "rest of the row": "the answer's row: FFNs, attention",
    "other positions": "other tokens",
    "words": "the words before the answer",
}


def draw(paths: pd.DataFrame, verdicts: Verdicts) -> dict[str, Figure | None]:
    """Every figure of the verdict by name; None where there is nothing to draw."""
    plots.use_style()
    chosen = usual(paths) if is_assessable(verdicts) else []
    return {
        "four_paths": four_paths(chosen[0]) if chosen else None,
        "by_family": by_family(paths) if len(paths) else None,
        "verdict": judged_cells(verdicts),
    }


def four_paths(chosen: pd.DataFrame) -> Figure:
    """The drawing: image → answer along four paths, widths and numbers are shares."""
    figure, ax = plt.subplots(figsize=(6.2, 3.2))
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.axis("off")
    by_player = chosen.set_index("player")
    direct = PLAYERS[0]
    _arrow(ax, (PLACES["image"], PLACES["logit"]), direct, by_player, bend=-0.42)
    ax.set_title(f"partner: {chosen['partner'].iloc[0]}", fontsize=9)
    ax.text(0.5, 0.945, f"directly (Eq. 1)  {percent(by_player.loc[direct])}", **_label(direct))
    for player, at in STOPS.items():
        bend = 0.0 if player == "rest of the row" else 0.05
        _arrow(ax, (PLACES["image"], at), player, by_player, bend=bend, head=False)
        _arrow(ax, (at, PLACES["logit"]), player, by_player, bend=bend)
        text = f"{STATIONS[player]}  {percent(by_player.loc[player])}"
        ax.text(*at, text, **_label(player))
    for name, at in PLACES.items():
        title = {"image": "image", "logit": "answer's\nlogit"}[name]
        box = {"boxstyle": "round,pad=0.5", "fc": "white", "ec": "0.2"}
        ax.text(*at, title, ha="center", va="center", bbox=box, fontsize=10, zorder=5)
    return figure


def _label(player: str) -> dict:
    box = {"boxstyle": "round,pad=0.3", "fc": "white", "ec": COLORS[player]}
    return {"ha": "center", "va": "center", "fontsize": 8.5, "bbox": box, "zorder": 4}


def _arrow(ax, ends, player, by_player, *, bend=0.0, head=True) -> None:
    share = abs(float(by_player.loc[player, "share_estimate"]))
    ax.add_patch(
        FancyArrowPatch(
            *ends,
            connectionstyle=f"arc3,rad={bend}",
            arrowstyle="-|>" if head else "-",
            mutation_scale=12,
            linewidth=1 + 9 * min(share, 1),
            color=COLORS[player],
            alpha=0.75,
            shrinkA=18,
            shrinkB=26 if head else 0,
            zorder=2,
        )
    )


def by_family(paths: pd.DataFrame) -> Figure:
    """Stacked bars of shares by family of questions, a panel per partner kind, with numbers."""
    kinds = list(dict.fromkeys(paths["partner"]))
    rows = paths
    for name, value in CELL.items():
        rows = rows[rows[name] == value]
    families = list(dict.fromkeys(rows["family"]))
    size = (6.2, 0.9 + 0.40 * len(families) * len(kinds))
    figure, axes = plt.subplots(len(kinds), 1, figsize=size, squeeze=False, sharex=True)
    for kind, ax in zip(kinds, axes[:, 0], strict=True):
        panel = rows[rows.partner == kind].set_index(["family", "player"])["share_estimate"]
        for at, family in enumerate(families):
            if (family, PLAYERS[0]) in panel.index:
                _stacked(ax, at, panel.loc[family])
            else:
                ax.text(0.01, at, "no partner of this kind", va="center", fontsize=8, color="0.4")
        names = [one.replace("_", " ") or "all" for one in families]
        ax.set_yticks(range(len(families)), names)
        ax.set_ylim(len(families) - 0.5, -0.5)
        ax.set_title(f"partner: {kind}")
        ax.axvline(0, color="0.3", linewidth=0.8)
        ax.grid(axis="y", visible=False)
    axes[-1, 0].set_xlabel("share of what the answer's log-odds lose (contrast, live norm)")
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLORS[p]) for p in PLAYERS]
    figure.legend(handles, [SHORT[p] for p in PLAYERS], loc="outside lower center", ncols=4)
    return figure


def _stacked(ax, at: int, shares: pd.Series) -> None:
    """One bar: negative shares to the left of 0, positive ones to the right."""
    right, left = 0.0, 0.0
    for player in PLAYERS:
        share = float(shares.loc[player])
        start = right if share >= 0 else left
        ax.barh(at, share, left=start, color=COLORS[player], height=0.72)
        if abs(share) >= 0.05:
            text = intervals.number(100 * share, 0)
            ax.text(start + share / 2, at, text, ha="center", va="center", fontsize=8, color="w")
        right, left = right + max(share, 0), left + min(share, 0)


def judged_cells(verdicts: Verdicts) -> Figure | None:
    """Δ of every cell over families, a panel per question."""
    found = verdicts.cells
    over = found[(found.family == OVERALL) & (found.n >= LEAST_IMAGES)]
    panels = list(over.groupby(["game", "token_class", "claim"], sort=False))
    if not panels:
        return None
    lines = [len(panel) for _, panel in panels]
    size = (6.6, sum(0.75 + 0.19 * n for n in lines))
    figure, axes = plt.subplots(len(panels), 1, figsize=size, squeeze=False, height_ratios=lines)
    for ax, ((game, token_class, claim), panel) in zip(axes[:, 0], panels, strict=True):
        labels = [cell_name(row) for row in panel.to_dict("records")]
        plots.margins(panel.assign(label=labels), ax)
        ax.set_title(f"{game} game, {token_class} tokens: {claim}", fontsize=9)
    handles, names = plots.margin_legend()
    figure.legend(handles, names, loc="outside lower center", ncols=2)
    assert np.isfinite(over["delta"]).all()
    return figure
