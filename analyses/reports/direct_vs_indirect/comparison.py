"""Two runs on the same texts → paired differences per image (METHODS.md 3.6). Needs no model."""

from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from interp import measures, stats
from interp.vocabulary import PATH_CLASSES, PATH_TITLES


def compared_path(path: Path) -> Path:
    """Where the run of the second model lies, beside the first's."""
    return path.with_name(path.name + "-compared")


def compare(first: xr.Dataset, second: xr.Dataset) -> pd.DataFrame:
    """Changes from the first model to the second, one row per token class and quantity.

    Over the images that both runs have; the same tokens are explained in both.

    Returns:
        token_class, quantity, then first, second and difference with bounds, and n.

    Raises:
        ValueError: no common sample, or other targets in them.
    """
    common = [name for name in first["sample"].values if name in set(second["sample"].values)]
    if not common:
        raise ValueError("expected runs with common samples to compare, got none")
    runs = [_only(run, common) for run in (first, second)]
    if first.attrs.get("prompt") != second.attrs.get("prompt") or not all(
        np.array_equal(runs[0][name], runs[1][name])
        for name in ("target_token_id", "source_token_id")
    ):
        raise ValueError(
            "expected the same prompts and texts in both runs, got others; extract them together"
        )
    if "foil_token_id" in runs[0] and not runs[0]["foil_token_id"].equals(runs[1]["foil_token_id"]):
        raise ValueError("expected the same foils in both runs, got others; extract them together")
    quantities = [_quantities(run) for run in runs]
    rows = []
    for name in quantities[0]:
        first_values, second_values = (found[name] for found in quantities)
        columns = {
            "first": first_values,
            "second": second_values,
            "difference": second_values - first_values,
        }
        intervals = {
            k: stats.mean_interval(v, seed=first.attrs["seed"]) for k, v in columns.items()
        }
        for token_class in first_values["token_class"].values:
            row = {"token_class": str(token_class), "quantity": name}
            for key, interval in intervals.items():
                cell = interval.sel(token_class=token_class)
                row |= {f"{key}_{b}": float(cell[b]) for b in ("estimate", "lower", "upper")}
                row["n"] = int(cell["n"])
            rows.append(row)
    frame = pd.DataFrame(rows)
    return frame[frame.n > 0].reset_index(drop=True)


def _only(run: xr.Dataset, names: list[str]) -> xr.Dataset:
    run = run.load()
    return run.sel(sample=names).isel(target=np.isin(run["target_sample"].values, names))


def _quantities(run: xr.Dataset) -> dict[str, xr.DataArray]:
    """Per-image means by name, (token_class, sample)."""
    image = {"source_set": "image", "drop": True}
    effect = measures.per_image(run, "effect").sel(**image)
    by_name = {
        "log-probability of the token [nat]": measures.per_image(run, "log_probability"),
        "edge effect of the image [logit]": measures.per_image(run, "total").sel(**image),
    }
    for path in effect["path"].values:
        by_name[f"edge effect: {PATH_TITLES[str(path)]} [logit]"] = effect.sel(path=path, drop=True)
    if "shapley" in run:
        # In contrast both runs have the first one's foils; a run in another gauge stores none.
        gauge = "contrast" if "foil_token_id" in run else "centered"
        at = {"visual_set": "image", "gauge": gauge, "norm": "live", "drop": True}
        total = measures.per_image(run, "shapley_total").sel(**at)
        direct = measures.per_image(run, "shapley").sel(path_class=PATH_CLASSES[0], **at)
        for reference in total["reference"].values:
            at_reference = {"reference": reference, "drop": True}
            te, p1 = total.sel(**at_reference), direct.sel(**at_reference)
            by_name[f"total effect of the image, {reference} [logit]"] = te
            by_name[f"Δ, direct minus the rest, {reference} [logit]"] = 2 * p1 - te
    return by_name
