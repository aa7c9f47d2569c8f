"""Findings on training → figures."""

from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from analyses.reports import drawing
from analyses.reports.before_after.findings import (
    GAME,
    GAUGE,
    REFERENCE_TITLES,
    ArmFindings,
)
from analyses.reports.drawing import BLACK, COLORS
from interp import plots
from interp.data.images import open_image
from interp.store import opening as store
from interp.vocabulary import PLAYERS, RULE_TITLES

DOTS = (BLACK, *COLORS)  # a total is black, its direct part has the colour of Eq. 1
SMOOTH = 10  # steps that a training curve averages
CURVES = {
    "accuracy": "Right answers",
    "saliency/alignment": "Alignment of the rewarded map",
    "text/tokens": "Length of a text [tokens]",
    "saliency/visual_attention": "Attention on the image",
}
N_EXAMPLES = 4


def draw(findings: ArmFindings, run_path: Path) -> dict[str, Figure | None]:
    """Every figure by name."""
    plots.use_style()
    return {
        "game": drawing.in_gauge(game(findings), "contrast"),
        "alignment": alignment(findings),
        "effects": drawing.in_gauge(effects(findings), GAUGE),
        "paths": drawing.in_gauge(paths(findings), GAUGE),
        "curves": curves(findings),
        "examples": examples(findings, run_path),
    }


def game(findings: ArmFindings) -> Figure | None:
    """Change of the image's effect on own words, by path, against control and before; or None."""
    table = findings.changes[findings.changes["group"] == GAME]
    if not len(table):
        return None
    names = ["total [logit]", *(f"{player} [logit]" for player in PLAYERS)]
    kinds = [kind for kind in ("control", "before") if (table["against"] == kind).any()]
    figure, axes = plt.subplots(1, len(kinds), sharey=True, figsize=(8.4, 3.4), squeeze=False)
    for ax, kind in zip(axes[0], kinds, strict=True):
        rows = table[(table["against"] == kind) & table["quantity"].isin(names)]
        tables = dict(list(rows.groupby("arm", sort=False)))
        drawing.dots(ax, tables, names, by="quantity", colors=DOTS)
        ax.set_yticks(range(len(names)), [name.removesuffix(" [logit]") for name in names])
        ax.axvline(0, color="0.3", linewidth=0.8)
        ax.set(title=f"After minus {kind}", xlabel="Log-odds of the answer [logit]")
    figure.legend(*axes[0, -1].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def alignment(findings: ArmFindings) -> Figure:
    """Alignment of every map in every model, on the same text and on each model's own."""
    arms = [findings.before, *findings.after]
    figure, axes = plt.subplots(
        1, len(RULE_TITLES), figsize=(8.6, 0.9 + 0.5 * len(arms)), sharey=True
    )
    chance = findings.levels[findings.levels["quantity"].str.contains("chance")]["estimate"].mean()
    for ax, title in zip(axes, RULE_TITLES.values(), strict=True):
        levels = findings.levels[findings.levels["quantity"] == f"{title} [share]"]
        tables = {
            f"{text} text": levels[levels["group"] == f"alignment, {text} text"]
            for text in ("same", "own")
        }
        drawing.dots(ax, tables, arms, by="arm", colors=DOTS)
        ax.axvline(chance, color="0.3", linewidth=0.8, linestyle="--")
        ax.set(title=title[0].upper() + title[1:], xlabel="Alignment [share]", xlim=(0, None))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def effects(findings: ArmFindings) -> Figure:
    """Change of the exact effect of the evidence on the answer, by reference."""
    parts = (
        "evidence: total [logit]",
        "evidence: direct write [logit]",
        "evidence: all other paths [logit]",
    )
    table = findings.changes[findings.changes["against"] == "before"]
    figure, axes = plt.subplots(
        1, len(REFERENCE_TITLES), sharey=True, figsize=(8.6, 0.9 + 0.6 * len(findings.after))
    )
    for ax, title in zip(axes, REFERENCE_TITLES.values(), strict=True):
        group = table[table["group"] == f"exact effect on answer tokens, against the {title}"]
        tables = {
            name.split(": ")[1].split(" [")[0]: group[group["quantity"] == name] for name in parts
        }
        drawing.dots(ax, tables, findings.after, by="arm", colors=DOTS)
        ax.axvline(0, color="0.3", linewidth=0.8)
        ax.set(title=f"Evidence replaced by the {title}", xlabel="After minus before [logit]")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def paths(findings: ArmFindings) -> Figure:
    """Change of the edge effect of the evidence, by path."""
    table = findings.changes[findings.changes["against"] == "before"]
    figure, axes = plt.subplots(1, 2, sharey=True, figsize=(8.6, 3.6))
    for ax, token_class in zip(axes, ("answer", "thinking"), strict=True):
        group = table[table["group"] == f"edge effect of the evidence on {token_class} tokens"]
        names = list(dict.fromkeys(group["quantity"]))
        tables = {arm: group[group["arm"] == arm] for arm in findings.after}
        drawing.dots(ax, tables, names, by="quantity", colors=DOTS)
        ax.set_yticklabels([name.removesuffix(" [logit]") for name in names])
        ax.axvline(0, color="0.3", linewidth=0.8)
        ax.set(title=f"Targets: {token_class} tokens", xlabel="After minus before [logit]")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def curves(findings: ArmFindings) -> Figure | None:
    """The training logs, smoothed, a line per model; None where no model has one."""
    if findings.curves is None:
        return None
    paid = {arm: facts["map"] for arm, facts in findings.run.attrs["arms"].items()}
    rewards = list(dict.fromkeys(paid[arm] for arm in findings.after))
    shown = {name: title for name, title in CURVES.items() if name in findings.curves}
    figure, axes = plt.subplots(1, len(shown), figsize=(2.6 * len(shown), 2.9), squeeze=False)
    axes = axes[0]
    for ax, (name, title) in zip(axes, shown.items(), strict=True):
        counts: Counter[str] = Counter()
        for arm, table in findings.curves.groupby("arm", sort=False):
            smooth = table[name].rolling(SMOOTH, min_periods=1).mean()
            line = ("-", "--", ":", "-.")[counts[paid[arm]] % 4]
            counts[paid[arm]] += 1
            ax.plot(
                table["step"],
                smooth,
                color=COLORS[rewards.index(paid[arm])],
                linestyle=line,
                linewidth=1.2 if paid[arm] != "none" else 3,  # others may lie on it
                alpha=1 if paid[arm] != "none" else 0.4,
                label=arm,
            )
        ax.set_title(title, fontsize=8)
        ax.set_xlabel("Step")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def examples(findings: ArmFindings, run_path: Path) -> Figure | None:
    """The maps of the same text before and for each reward, each on a scale of its own from 0."""
    run_path = run_path / "0"
    names = [
        str(n) for n in findings.run["sample"].values if store.image_path(run_path, n).is_file()
    ]
    if not names:
        return None
    rules = ("direct", "effect")
    paid = {arm: findings.run.attrs["arms"][arm]["map"] for arm in reversed(findings.after)}
    first = {reward: arm for arm, reward in paid.items()}  # of runs of one reward, the first
    arms = [findings.before, *(arm for arm in findings.after if arm in first.values())]
    chosen = names[:N_EXAMPLES]
    rows = [(rule, arm) for rule in rules for arm in arms]
    size = 1.7 * len(chosen) + 2.2, 1.3 * (len(rows) + 1)
    figure, axes = plt.subplots(len(rows) + 1, len(chosen), figsize=size, squeeze=False)
    for column, name in enumerate(chosen):
        sample = findings.run.sel(sample=name)
        image = open_image(store.image_path(run_path, name))
        boxes = sample["box"].dropna("box_number").values
        plots.scene(image, boxes, axes[0, column])
        axes[0, column].set_title(
            f"{sample['question'].item()}\n{sample['reference_answer'].item()}", fontsize=7
        )
        for row, (rule, arm) in enumerate(rows, start=1):
            saliency = sample["answer_map"].sel(rule=rule, arm=arm)
            saliency = saliency.dropna("row", how="all").dropna("column", how="all")
            if saliency.size:
                plots.overlay(image, saliency, boxes, axes[row, column])
            else:
                axes[row, column].axis("off")
    labels = ["image and boxes", *(f"{RULE_TITLES[rule]}\n{arm}" for rule, arm in rows)]
    for row, label in enumerate(labels):
        axes[row, 0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=7)
    return figure
