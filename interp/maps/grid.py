"""Labelled arrays → maps over the patches of an image (METHODS.md 4)."""

import numpy as np
import xarray as xr

from interp.vocabulary import require


def token_map(ledger: xr.Dataset, target: int | np.integer | str = "answer") -> xr.DataArray:
    """The direct contributions of one image's tokens to one target, (row, column), signed.

    Eq. 1 of Saliency-R1 summed over layers and heads, on the merged grid; the paper's ReLU is
    applied only when a map is drawn or scored.

    Args:
        ledger: of one sample, with detail "full" or "tokens".
        target: its index, its token as a string, or a role (the first target of that role).

    Raises:
        ValueError: no such target, or no (or more than one) image.
    """
    require(ledger["direct"], "target", "source")
    index = target_index(ledger, target)
    direct = ledger["direct"].isel(target=index)
    direct = direct.sum([d for d in direct.dims if d != "source"], skipna=False)
    return on_grid(direct)


def one_map(
    maps: xr.Dataset, target: int | np.integer | str = "answer", kind: str = "direct"
) -> xr.DataArray:
    """One kind of map for one target, (row, column), signed.

    Args:
        maps: as `interp.extract.maps` gives them.
        target: as for `token_map`.
        kind: one of those in the dataset.

    Raises:
        ValueError: a kind that is not there, no such target, or no (or more than one) image.
    """
    values = _kind(maps, kind).isel(target=target_index(maps, target))
    return on_grid(values)


def holistic(
    maps: xr.Dataset, kind: str = "bottleneck", role: str | None = "answer"
) -> xr.DataArray:
    """All targets of a role, or of both, in one map, (row, column), not negative.

    Σ over targets of ReLU(map), as in the paper; ReLU(Σ over targets of map) for maps of the
    variant "release". With kind "bottleneck" it is the paper's holistic map. Targets whose map is
    not defined add nothing.

    Raises:
        ValueError: a kind that is not there, no target of the role, or no (or more than one) image.
    """
    values = _kind(maps, kind)
    roles = ("answer", "thinking") if role is None else (role,)
    of_role = maps["target_role"].isin(roles).values
    if not of_role.any():
        raise ValueError(f"expected targets of the role {' or '.join(map(repr, roles))}, got none")
    values = values.isel(target=of_role & maps["is_defined"].sel(kind=kind).values)
    if maps.attrs.get("variant") == "release":
        return on_grid(values.sum("target", skipna=False).clip(min=0))
    return on_grid(values.clip(min=0).sum("target", skipna=False))


def _kind(maps: xr.Dataset, kind: str) -> xr.DataArray:
    require(maps, "kind", "target", "source")
    if kind not in maps["kind"].values:
        raise ValueError(
            f"expected a kind of {maps['kind'].values.tolist()}, got {kind!r}; "
            f"interp.extract.maps(..., kinds=({kind!r},)) makes it"
        )
    return maps["map"].sel(kind=kind)


def on_grid(values: xr.DataArray) -> xr.DataArray:
    """Values per source token of one image, arranged by patch row and column.

    Raises:
        ValueError: no (or more than one) image.
    """
    require(values, "source")
    visual = values.isel(source=(values["image"] >= 0).values)
    if visual.sizes["source"] == 0 or int(visual["image"].max()) > 0:
        raise ValueError(
            f"expected tokens of one image, got {int(values['image'].max()) + 1} images"
        )
    shape = int(visual["row"].max()) + 1, int(visual["column"].max()) + 1
    grid = np.zeros(shape, dtype=visual.dtype)
    grid[visual["row"].values, visual["column"].values] = visual.values
    coords = {"row": np.arange(shape[0]), "column": np.arange(shape[1])}
    saliency = xr.DataArray(grid, dims=("row", "column"), coords=coords, name=values.name)
    return saliency.assign_attrs(values.attrs | {"units": "logit"})


def target_index(dataset: xr.Dataset, target: int | np.integer | str) -> int:
    """The index of a target given as such, as a token or as a role.

    Raises:
        ValueError: no such target.
    """
    n_targets = dataset.sizes["target"]
    if isinstance(target, int | np.integer) and not isinstance(target, bool):
        if not 0 <= target < n_targets:
            raise ValueError(f"expected a target in 0..{n_targets - 1}, got {target}")
        return int(target)
    for name in ("target_role", "target_token"):
        indices = np.flatnonzero(dataset[name].values == target)
        if len(indices):
            return int(indices[0])
    tokens = dataset["target_token"].values.tolist()
    raise ValueError(
        f"expected a target's index, role or one of its tokens {tokens}, got {target!r}"
    )
