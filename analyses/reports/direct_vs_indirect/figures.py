"""Findings → figures, one function each."""

import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from PIL import Image

from analyses.reports.direct_vs_indirect.examples import example_ids
from analyses.reports.direct_vs_indirect.findings import Findings, points, reading
from analyses.reports.direct_vs_indirect.game_tables import cell_name
from analyses.reports.drawing import in_gauge
from interp import plots
from interp.maps import grid as maps
from interp.store import opening as store

ROLES = ("answer", "thinking")  # whose maps the examples show


def draw(findings: Findings, run_path: Path) -> dict[str, Figure | None]:
    """Every figure by name; None for those that the run has no numbers for."""
    plots.use_style()
    of_run = {
        "paths": paths(findings),
        "by_layer": by_layer(findings),
        "scatter": scatter(findings),
        "nodes": nodes(findings),
        "examples": examples(findings, run_path),
    }
    gauge = findings.run.attrs["gauge"]
    return {name: in_gauge(figure, gauge) for name, figure in of_run.items()} | {
        "shares": shares(findings),
        "cells": cells(findings),
        "path_classes": in_gauge(path_classes(findings), "contrast"),
        "exactness": exactness(findings),
    }


def _classes(findings: Findings) -> list[str]:
    """Token classes that the run has."""
    return [
        str(c)
        for c in findings.paths["token_class"].values
        if (findings.run["target_role"] == c).any()
    ]


def _with_images(interval: xr.Dataset, dim: str) -> xr.Dataset:
    """The entries along a dimension that some image has: evidence needs boxes, a twin its twin."""
    count = interval["n"]
    return interval.isel({dim: (count.max([d for d in count.dims if d != dim]) > 0).values})


def paths(findings: Findings) -> Figure:
    """Mean effect by path and source set, a panel per token class."""
    classes = _classes(findings)
    figure, axes = plt.subplots(len(classes), 1, figsize=(7.2, 2.7 * len(classes)), squeeze=False)
    for token_class, ax in zip(classes, axes[:, 0], strict=True):
        interval = _with_images(findings.paths.sel(token_class=token_class), "source_set")
        plots.path_means(interval.transpose("source_set", "path"), ax)
        ax.set_title(f"Targets: {token_class} tokens")
    axes[-1, 0].legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.25))
    return figure


def cells(findings: Findings) -> Figure | None:
    """Δ in every cell, a panel per token class and source set; None without Shapley values."""
    if findings.indirect is None:
        return None
    found = findings.indirect.cells.assign(by=findings.indirect.cells["reference"])
    found = found.assign(label=[cell_name(row) for row in found.to_dict("records")])
    labels = list(dict.fromkeys(found["label"]))
    panels = list(found.groupby(["token_class", "source_set"], sort=False))
    rows = -(-len(panels) // 2)
    size = (8.4, rows * (0.9 + 0.2 * len(labels)))
    figure, axes = plt.subplots(rows, 2, figsize=size, sharey=True, squeeze=False)
    for ax, (names, panel) in zip(axes.flat, panels, strict=False):
        # Every panel has a line for every cell, also for one that it has no images for.
        plots.margins(panel.set_index("label").reindex(labels).reset_index(), ax)
        ax.set_title(f"{names[0]} tokens, {names[1]}")
    for ax in axes.flat[len(panels) :]:
        ax.axis("off")
    handles, names = plots.margin_legend()
    figure.legend(handles, names, loc="outside lower center", ncols=3)
    return figure


def path_classes(findings: Findings) -> Figure | None:
    """Mean Shapley values of the image's path classes, a panel per token class."""
    return _by_reference(findings, "classes", plots.class_means)


def nodes(findings: Findings) -> Figure | None:
    """Mean node effects of the image by path, a panel per token class."""
    return _by_reference(findings, "nodes", plots.node_means)


def _by_reference(findings: Findings, name: str, draw) -> Figure | None:
    if findings.indirect is None:
        return None
    chosen = {"visual_set": "image", "gauge": "contrast", "norm": "live"}
    interval = getattr(findings.indirect, name)
    interval = _with_images(
        interval.sel({k: v for k, v in chosen.items() if k in interval.dims}), "reference"
    )
    classes = _classes(findings)
    figure, axes = plt.subplots(1, len(classes), figsize=(3.9 * len(classes), 3.0), squeeze=False)
    for token_class, ax in zip(classes, axes[0], strict=True):
        draw(interval.sel(token_class=token_class), ax)
        ax.set_title(f"Targets: {token_class} tokens")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4)
    return figure


def shares(findings: Findings) -> Figure:
    """Direct share where the total effect passes the gate."""
    figure, ax = plt.subplots(figsize=(6.2, 2.8))
    shown = _with_images(findings.shares.sel(token_class=_classes(findings)), "source_set")
    shown = shown.where(shown["is_shown"]).transpose("source_set", "token_class", ...)
    totals = findings.paths.sel(path="total")
    words = [
        [reading(totals.sel(source_set=s, token_class=c)) for c in shown["token_class"].values]
        for s in shown["source_set"].values
    ]
    plots.shares(shown.assign(reading=(("source_set", "token_class"), words)), ax)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2)
    return figure


def by_layer(findings: Findings) -> Figure:
    """Mean effect of the image by layer."""
    classes = _classes(findings)
    figure, axes = plt.subplots(1, len(classes), figsize=(3.6 * len(classes), 2.7), squeeze=False)
    for token_class, ax in zip(classes, axes[0], strict=True):
        plots.by_layer(findings.layers.sel(token_class=token_class), ax)
        ax.set_title(f"Targets: {token_class} tokens")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2 * len(classes))
    return figure


def scatter(findings: Findings) -> Figure:
    """Direct part against total effect, one point per target."""
    figure, ax = plt.subplots(figsize=(5.4, 4.6))
    plots.direct_against_total(points(findings), ax)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    return figure


def exactness(findings: Findings) -> Figure:
    """Distribution of relative errors."""
    figure, ax = plt.subplots(figsize=(4.6, 2.6))
    plots.errors(findings.errors, ax, findings.bound)
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def examples(findings: Findings, run_path: Path) -> Figure | None:
    """The first scene of each family with direct maps; None for a run without images or maps."""
    run = findings.run
    ids = example_ids(run)
    chosen = [run["sample"].values.tolist().index(name) for name in ids]
    has_images = all(store.image_path(run_path, name).is_file() for name in ids)
    if "direct" not in run or not has_images:
        return None
    drawn = [_example(run, i) for i in chosen]
    limits = [max(float(np.abs(one[k]).max()) for one in drawn) for k in range(2)]
    heights = [1.0] * len(ids) + [0.07]
    figure, axes = plt.subplots(
        len(heights), 3, figsize=(7.2, 1.75 * len(ids)), height_ratios=heights, squeeze=False
    )
    for row, name, i, arrays in zip(axes, ids, chosen, drawn, strict=False):
        image = Image.open(store.image_path(run_path, name))
        sample = run.isel(sample=i)
        boxes = sample["box"].values[: int(sample["n_boxes"])]
        plots.scene(image, boxes, row[0])
        aspect = image.height / image.width
        for ax, array, limit, role in zip(row[1:], arrays, limits, ROLES, strict=True):
            if float(np.abs(array).max()) > 0:
                plots.signed_map(array, boxes, ax, limit=limit, aspect=aspect)
            else:
                ax.axis("off")
                ax.text(0.5, 0.5, f"no {role} tokens", ha="center", va="center", fontsize=7)
        row[0].set_ylabel(_caption(sample), rotation=0, ha="right", va="center", fontsize=7)
    for ax, title in zip(
        axes[0], ("image and evidence", "answer", "thinking, summed"), strict=True
    ):
        ax.set_title(title)
    axes[-1, 0].axis("off")
    for ax, limit in zip(axes[-1, 1:], limits, strict=True):
        if limit == 0:
            ax.axis("off")
            continue
        scale = plt.cm.ScalarMappable(plt.Normalize(-limit, limit), cmap="RdBu_r")
        label = "Eq. 1 [logit]"
        figure.colorbar(scale, cax=ax, orientation="horizontal", label=label)
    return figure


def _example(run: xr.Dataset, index: int) -> tuple[xr.DataArray, xr.DataArray]:
    """Direct maps of one sample: of its answer tokens and of its thinking tokens, each summed."""
    sample = run.isel(sample=index)
    direct = sample["direct"].isel(target=(run["target_sample"] == sample["sample"]).values)
    return tuple(
        maps.on_grid(direct.isel(target=(direct["target_role"] == role).values).sum("target"))
        for role in ROLES
    )


def _caption(sample: xr.Dataset) -> str:
    reference = sample["reference_answer"].item()
    right = "right" if bool(sample["is_correct"]) else f"wrong, should be {reference}"
    if not reference:
        right = "own text"
    if sample.attrs["text"] == "reference":
        right = "reference text"
    question = textwrap.fill(str(sample["question"].item()), 24, max_lines=5)
    answer = textwrap.fill(f"→ {sample['answer'].item()}", 24, max_lines=4)
    return f"{question}\n{answer}\n({textwrap.fill(right, 24, max_lines=3)})"
