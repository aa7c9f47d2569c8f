"""Per-image statistics on a run's labelled arrays; averages and intervals are `stats`' work."""

import numpy as np
import xarray as xr

from interp.labels import require

TOKEN_CLASSES = ("answer", "thinking")


def per_image(run: xr.Dataset, name: str) -> xr.DataArray:
    """A variable with dimension target, averaged over the targets of each image and token class.

    Targets for which a source set (or a reference) is not defined are left out; an image without any
    keeps NaN.

    Returns:
        Dimensions (token_class, sample, …).
    """
    array = run[name]
    for dim, mask in (("source_set", "is_defined"), ("visual_set", "node_defined")):
        if dim in array.dims:
            array = array.where(run[mask])
    return mean_over_targets(run, array)


def mean_over_targets(run: xr.Dataset, array: xr.DataArray) -> xr.DataArray:
    """An array over the run's targets, averaged over those of each image and token class.

    NaN is left out; an image without any value keeps NaN.

    Returns:
        Dimensions (token_class, sample, …).
    """
    require(array, "target")
    classes = []
    for token_class in TOKEN_CLASSES:
        of_class = array.isel(target=np.flatnonzero(run["target_role"] == token_class))
        if of_class.sizes["target"] == 0:
            empty = array.isel(target=0, drop=True).astype(float) * np.nan
            empty = empty.drop_vars([c for c in empty.coords if c not in empty.dims])
            classes.append(empty.expand_dims(target_sample=run["sample"].values))
            continue
        grouped = of_class.groupby("target_sample").mean("target", skipna=True)
        classes.append(grouped.reindex(target_sample=run["sample"].values))
    joined = xr.concat(classes, dim=xr.Variable("token_class", list(TOKEN_CLASSES)))
    return joined.rename(target_sample="sample").assign_attrs(array.attrs)


def relative_errors(run: xr.Dataset) -> xr.Dataset:
    """How exact the run is: |error| over the sum of absolute parts of the logit, per target.

    `ledger` is the remainder of METHODS.md 2, `replay` the drift between replay and prefill, and
    `effects` the worst source set's total minus the sum of its paths.
    """
    gap = (run["total"] - run["effect"].sum("path", skipna=False)).where(run["is_defined"], 0)
    errors = xr.Dataset(
        {
            "ledger": np.abs(run["remainder"]) / run["magnitude"],
            "replay": np.abs(run["replay_drift"]) / run["magnitude"],
            "effects": np.abs(gap).max("source_set") / run["magnitude"],
        }
    )
    for array in errors.values():
        array.attrs = {"units": "1", "long_name": "Error relative to the sum of absolute parts"}
    return errors
