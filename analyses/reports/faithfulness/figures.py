"""Findings on maps → figures."""

from pathlib import Path

import matplotlib.pyplot as plt
import xarray as xr
from matplotlib.figure import Figure

from analyses.reports import drawing
from analyses.reports.drawing import BLACK, COLORS, MARKERS
from analyses.reports.faithfulness.findings import MapFindings
from interp import plots
from interp.data.images import open_image
from interp.store import opening as store

N_EXAMPLES = 4
OURS = (
    "direct (Eq. 1)",
    "bottleneck (Saliency-R1)",
    "two hops",
    "first order, integrated",
    "exact edge",
    "exact slot",
)


def draw(findings: MapFindings, run_path: Path) -> dict[str, Figure | None]:
    """Every figure by name."""
    plots.use_style()
    return {
        "ranking": ranking(findings),
        "curves": curves(findings, "all"),
        "curves_answer": curves(findings, "answer"),
        "agreement": agreement(findings),
        "costs": costs(findings),
        "examples": examples(findings, run_path),
    }


def _styles(methods: list[str]) -> dict[str, dict]:
    """Colours that the colour-blind tell apart, ours solid and thick, others dashed and thin."""
    colors, markers = (*COLORS, BLACK), MARKERS
    our_methods = [m for m in methods if m in OURS]
    others = [m for m in methods if m not in OURS]
    styles = {}
    for group, line, width in ((our_methods, "-", 1.8), (others, "--", 1.0)):
        for k, name in enumerate(group):
            styles[name] = {
                "color": colors[k % len(colors)],
                "marker": markers[k % len(markers)],
                "linestyle": line if k < len(colors) else ":",
                "linewidth": width,
            }
    return styles


def ranking(findings: MapFindings) -> Figure:
    """Every map by deletion and insertion of the answer, mean over the shares, best first."""
    table = findings.ranking.query("text == 'answer'")
    methods = list(dict.fromkeys(table["method"]))
    figure, axes = plt.subplots(1, 2, sharey=True, figsize=(8.4, 0.9 + 0.24 * len(methods)))
    for ax, change, better in zip(axes, ("deletion", "insertion"), ("less", "more"), strict=True):
        group = table[table["change"] == change]
        drawing.dots(ax, {change: group}, methods, by="method", colors=(BLACK,))
        random = group[group["method"] == "random"]["estimate"]
        for value in random:
            ax.axvline(value, color="0.3", linewidth=0.8, linestyle="--")
        ax.set(
            title=change.capitalize(),
            xlabel=f"Answer's log-likelihood [0 to 100], {better} is better",
        )
    return figure


def curves(findings: MapFindings, text: str) -> Figure:
    """Normalised log-likelihood against the share of pixels, deletion and insertion."""
    table = findings.scores.query("text == @text")
    methods = findings.run["explainer"].values.tolist()
    figure, axes = plt.subplots(1, 2, figsize=(8.6, 4.6), sharey=True)
    for ax, change, start in zip(axes, ("deletion", "insertion"), (100, 0), strict=True):
        for name, style in _styles(methods).items():
            curve = table.query("method == @name and change == @change").sort_values("share")
            x = [0, *(100 * curve["share"])]
            ax.plot(x, [start, *curve["estimate"]], label=name, markersize=4, **style)
            ax.fill_between(
                x[1:], curve["lower"], curve["upper"], color=style["color"], alpha=0.07, linewidth=0
            )
        ax.set(xlabel=f"Pixels, % ({change})", title=change.capitalize())
        ax.axhline(0, color="0.4", linewidth=0.8)
        ax.axhline(100, color="0.4", linewidth=0.8)
    axes[0].set_ylabel("Log-likelihood of the text\nblank image = 0, original = 100")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=7)
    return figure


def _by_method(ax, table, group: str, label: str) -> None:
    """Estimates with intervals by method, one mark per value of `group`."""
    tables = dict(list(table.groupby(group, sort=False)))
    drawing.dots(ax, tables, table["method"].drop_duplicates().tolist(), by="method")
    ax.axvline(0, color="0.3", linewidth=0.8)
    ax.set_xlabel(label)


def agreement(findings: MapFindings) -> Figure:
    """Rank agreement with exact maps, and mass on the asked object."""
    n_panels = 1 + (findings.excess is not None)
    figure, axes = plt.subplots(
        1, n_panels, figsize=(4.4 * n_panels, 5.2), sharey=True, squeeze=False
    )
    _by_method(
        axes[0, 0], findings.agreement, "exact", "Rank agreement (Spearman) with the exact map"
    )
    axes[0, 0].legend(title="Exact map", loc="upper left", bbox_to_anchor=(0, -0.12), ncols=3)
    if findings.excess is not None:
        _by_method(axes[0, 1], findings.excess, "weights", "Mass on the asked digit beyond chance")
        axes[0, 1].legend(title="Weights", loc="upper left", bbox_to_anchor=(0, -0.12), ncols=2)
    return figure


def costs(findings: MapFindings) -> Figure:
    """Insertion of the answer against time: what a map costs, and what it is worth."""
    scores = findings.scores.query("text == 'answer' and change == 'insertion' and share == 0.15")
    figure, ax = plt.subplots(figsize=(7.2, 4.4))
    merged = scores.merge(findings.costs, on="method", suffixes=("", "_cost"))
    for name, style in _styles(merged["method"].tolist()).items():
        row = merged[merged["method"] == name].iloc[0]
        error = [[row["estimate"] - row["lower"]], [row["upper"] - row["estimate"]]]
        ax.errorbar(
            row["ratio"],
            row["estimate"],
            yerr=error,
            fmt=style["marker"],
            color=style["color"],
            capsize=2,
            label=name,
            fillstyle="full" if name in OURS else "none",
        )
    ax.set_xscale("log")
    plots.plain_logarithms(ax.xaxis)
    ax.set_xlabel(f"Time of a map, ratio to {findings.costs['cheapest'].iloc[0]} (log)")
    ax.set_ylabel("Insertion of 15 % of the pixels:\nlog-likelihood of the answer, 0 to 100")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside right center", fontsize=7)
    return figure


def examples(findings: MapFindings, run_path: Path) -> Figure | None:
    """All methods on the same scenes, each map on a scale of its own from 0 to its maximum."""
    scenes = _with_images(findings.run, run_path)
    if not scenes:
        return None
    methods = findings.run["explainer"].values.tolist()
    n_rows, n_columns = len(methods) + 1, len(scenes)
    size = 1.55 * n_columns + 1.6, 1.25 * n_rows
    figure, axes = plt.subplots(n_rows, n_columns, squeeze=False, figsize=size)
    for column, (name, image) in enumerate(scenes):
        sample = findings.run.sel(sample=name)
        boxes = sample["box"].dropna("box_number").values
        plots.scene(image, boxes, axes[0, column])
        axes[0, column].set_title(
            f"{sample['question'].item()}\n{sample['answer'].item()}", fontsize=7
        )
        for row, method in enumerate(methods, start=1):
            saliency = sample["answer_map"].sel(explainer=method)
            saliency = saliency.dropna("row", how="all").dropna("column", how="all")
            plots.overlay(image, saliency, boxes, axes[row, column])
    for row, label in enumerate(["image and boxes", *methods]):
        axes[row, 0].set_ylabel(
            label.replace(" (", "\n("), rotation=0, ha="right", va="center", fontsize=7
        )
    return figure


def _with_images(run: xr.Dataset, run_path: Path) -> list[tuple[str, object]]:
    """Scenes of different kinds whose image lies in the run."""
    scenes, families = [], set()
    for name, family in zip(run["sample"].values, run["family"].values, strict=True):
        path = store.image_path(run_path, str(name))
        if path.is_file() and (family not in families or not family):
            families.add(family)
            scenes.append((str(name), open_image(path)))
    return scenes[:N_EXAMPLES]
