"""One scene with its text, its map and its split, for the first screen. Needs no model."""

import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from analyses.reports import intervals
from interp import plots
from interp.maps import grid
from interp.plots.style import CLASS_COLORS
from interp.store import opening as store

AT = {"visual_set": "image", "gauge": "contrast", "norm": "live"}


def scene(run: xr.Dataset, run_path: Path) -> Figure | None:
    """The first scene that was answered rightly; None without its image, its map or its split."""
    right = np.flatnonzero(run["is_correct"].values.astype(bool))
    index = int(right[0]) if len(right) else 0
    name = str(run["sample"].values[index])
    path = store.image_path(run_path, name)
    if "direct" not in run or "shapley" not in run or not path.is_file():
        return None
    of_answer = (run["target_sample"] == name) & (run["target_role"] == "answer")
    sample = run.isel(sample=index, target=np.flatnonzero(of_answer))
    saliency = grid.on_grid(sample["direct"].sum("target"))
    boxes = sample["box"].values[: int(sample["n_boxes"])]
    figure, axes = plt.subplots(1, 3, figsize=(8.4, 2.9), width_ratios=[1, 1, 1.25])
    image = Image.open(path)
    plots.scene(image, boxes, axes[0])
    limit = float(np.abs(saliency).max()) or 1.0
    plots.signed_map(saliency, boxes, axes[1], limit=limit, aspect=image.height / image.width)
    axes[0].set_title(_wrapped(sample["question"].item()))
    axes[1].set_title("Eq. 1 of the answer")
    scale = f"red to +{limit:.1f}, blue to −{limit:.1f} [logit, {run.attrs['gauge']}]"
    axes[1].set_xlabel(scale, fontsize=7)
    _split(sample, axes[2])
    handles = [plt.Rectangle((0, 0), 1, 1, color=color) for color in CLASS_COLORS.values()]
    figure.legend(handles, list(CLASS_COLORS), loc="outside lower right", ncols=3, fontsize=8)
    axes[0].set_xlabel(_wrapped(f"“{' '.join(str(sample['text'].item()).split())}”"), fontsize=7)
    return figure


def _split(sample: xr.Dataset, ax: Axes) -> None:
    """Shapley values of the answer by what replaces the image, stacked, with their numbers."""
    is_there = sample["node_defined"].sel(visual_set="image")
    means = sample["shapley"].sel(AT).where(is_there).mean("target")
    means = means.dropna("reference")
    references = means["reference"].values.tolist()
    least = 0.06 * float(np.abs(means).sum("path_class").max()) if references else 0.0
    for at, reference in enumerate(references):
        left = {True: 0.0, False: 0.0}
        for path_class, color in CLASS_COLORS.items():
            value = float(means.sel(reference=reference, path_class=path_class))
            side = value >= 0
            ax.barh(at, value, left=left[side], color=color, height=0.7)
            if abs(value) >= least:
                text = intervals.number(value, 1)
                ax.text(left[side] + value / 2, at, text, ha="center", va="center", color="w")
            left[side] += value
    ax.set_yticks(range(len(references)), references)
    ax.set_ylim(len(references) - 0.5, -0.5)
    ax.axvline(0, color="0.3", linewidth=0.8)
    ax.set(
        xlabel="log-odds of the answer [logit, contrast]", title="What replacing the image takes"
    )


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 34, max_lines=5)
