"""Datasets of single samples ↔ shards ↔ a run: joining along target and sample, with padding.

What describes the source tokens gets the dimensions (sample, source); shorter sequences, grids and
lists are filled up behind, each variable with what says "nothing here".
"""

import numpy as np
import xarray as xr

# Only what has the dimension is joined; everything else has to be the same in all pieces.
_CONCAT = {"data_vars": "minimal", "coords": "minimal", "compat": "equals"}
_RAGGED = ("source", "box_number", "text_token", "row", "column")
_NOTHING = {
    "row": -1,
    "column": -1,
    "image": -1,
    "source_role": "padding",
    "source_token": "",
    "text_token_id": -1,
    "box": np.nan,
    "answer_map": np.nan,
}


def stack(datasets: list[xr.Dataset], samples: xr.Dataset) -> xr.Dataset:
    """One shard from the datasets of single samples, targets one after the other.

    `target_sample` says to which sample a target belongs.

    Args:
        datasets: one per sample, with dimension target and perhaps source.
        samples: facts about the samples, with dimension sample, in the same order.
    """
    longest = max(d.sizes.get("source", 0) for d in datasets)
    by_target, by_source = [], []
    for name, dataset in zip(samples["sample"].values, datasets, strict=True):
        padded = _padded(dataset, "source", longest)
        of_source = [c for c in padded.coords if padded[c].dims == ("source",) and c != "source"]
        by_source.append(padded[of_source].reset_coords().drop_vars("source", errors="ignore"))
        by_target.append(
            padded.drop_vars(of_source)
            .assign_coords(target_sample=("target", [name] * padded.sizes["target"]))
            .drop_vars("target")
        )
    shard = xr.concat(by_target, dim="target", join="exact", **_CONCAT)
    if longest:
        described = xr.concat(by_source, dim=samples["sample"])
        shard = shard.merge(described.set_coords(list(described.data_vars)))
    shard = shard.merge(samples)
    shard.attrs = {}
    return shard


def join(shards: list[xr.Dataset]) -> xr.Dataset:
    """Several datasets as one, along target and sample; what one of them lacks is NaN in it."""
    arrays = {name: array for shard in shards for name, array in shard.data_vars.items()}
    shards = [_complete(shard, arrays) for shard in shards]
    for dim in _RAGGED:
        longest = max(s.sizes.get(dim, 0) for s in shards)
        shards = [_padded(s, dim, longest) for s in shards]
    joined = []
    for dim in [d for d in ("target", "sample") if d in shards[0].dims]:
        names = [name for name, array in shards[0].variables.items() if dim in array.dims]
        joined.append(xr.concat([s[names] for s in shards], dim=dim, join="exact", **_CONCAT))
    rest = [n for n, v in shards[0].variables.items() if not {"target", "sample"} & set(v.dims)]
    return xr.merge([*joined, shards[0][rest]], join="exact", compat="equals")


def _complete(dataset: xr.Dataset, arrays: dict[str, xr.DataArray]) -> xr.Dataset:
    missing = {name: array for name, array in arrays.items() if name not in dataset}
    for name, array in missing.items():
        shape = [dataset.sizes.get(dim, array.sizes[dim]) for dim in array.dims]
        coords = {d: array[d] for d in array.dims if d in array.coords and d not in dataset.dims}
        dataset = dataset.assign({name: xr.DataArray(np.full(shape, np.nan), coords, array.dims)})
    return dataset


def _padded(dataset: xr.Dataset, dim: str, length: int) -> xr.Dataset:
    """The dataset with a dimension filled up to `length`; its coordinate goes on counting."""
    if dataset.sizes.get(dim, length) == length:
        return dataset
    is_numbered = dim in dataset.coords
    if not is_numbered:
        dataset = dataset.assign_coords({dim: np.arange(dataset.sizes[dim])})
    nothing = {
        name: np.asarray(_NOTHING.get(name, 0)).astype(array.dtype).item()
        for name, array in dataset.variables.items()
        if dim in array.dims and name != dim
    }
    filled = dataset.reindex({dim: np.arange(length)}, fill_value=nothing)
    return filled if is_numbered else filled.drop_vars(dim)
