"""Labelled arrays → maps over the patches of an image (METHODS.md 4)."""

import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from interp.maps.map import Map
from interp.maps.named import Wanted, target_indices
from interp.vocabulary import require


def token_map(ledger: xr.Dataset, target: Wanted = "answer", *, image: int | None = None) -> Map:
    """The direct contributions of one image's tokens to one target, (row, column), signed.

    Eq. 1 of Saliency-R1 summed over layers and heads, on the merged grid; the paper's ReLU is
    applied only when a map is drawn or scored.

    Args:
        ledger: of one sample, with detail "full" or "tokens".
        target: its index, a role (the first target of that role), its token, or a phrase or
            several indices, whose maps are added.
        image: as for `on_grid`.

    Raises:
        ValueError: no such target or image.
    """
    require(ledger["direct"], "target", "source")
    direct = ledger["direct"].isel(target=target_indices(ledger, target))
    direct = direct.sum([d for d in direct.dims if d != "source"], skipna=False, keep_attrs=True)
    return on_grid(direct, image)


def one_map(
    maps: xr.Dataset, target: Wanted = "answer", kind: str = "direct", *, image: int | None = None
) -> Map:
    """One kind of map for one target, (row, column), signed.

    Args:
        maps: as `interp.extract.maps` gives them.
        target: as for `token_map`.
        kind: one of those in the dataset.
        image: as for `on_grid`.

    Raises:
        ValueError: a kind that is not there, no such target or image.
    """
    values = _kind(maps, kind).isel(target=target_indices(maps, target))
    return on_grid(values.sum("target", skipna=False, keep_attrs=True), image)


def holistic(
    maps: xr.Dataset,
    kind: str = "bottleneck",
    role: str | None = "answer",
    *,
    image: int | None = None,
) -> Map:
    """All targets of a role, or of both, in one map, (row, column), not negative.

    Σ over targets of ReLU(map), as in the paper; ReLU(Σ over targets of map) for maps of the
    variant "release". With kind "bottleneck" it is the paper's holistic map. Targets whose map is
    not defined add nothing.

    Args:
        maps: as `interp.extract.maps` gives them.
        kind: one of those in the dataset.
        role: "answer", "thinking", or None for both.
        image: as for `on_grid`.

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
        return on_grid(values.sum("target", skipna=False).clip(min=0), image)
    return on_grid(values.clip(min=0).sum("target", skipna=False, keep_attrs=True), image)


def _kind(maps: xr.Dataset, kind: str) -> xr.DataArray:
    if "map" not in maps:
        raise ValueError(
            "expected a dataset of interp.extract.maps, got one of "
            f"{sorted(map(str, maps.data_vars))[:4]} …; token_map takes a ledger"
        )
    require(maps, "kind", "target", "source")
    if kind not in maps["kind"].values:
        raise ValueError(
            f"expected a kind of {maps['kind'].values.tolist()}, got {kind!r}; "
            f"interp.extract.maps(..., kinds=({kind!r},)) makes it"
        )
    return maps["map"].sel(kind=kind)


def on_grid(values: xr.DataArray, image: int | None = None) -> Map:
    """Values per source token of one image, arranged by patch row and column.

    Where the model sees an image in several views, the grid is the finest view's, and the others'
    values are spread over it (`arranged`).

    Args:
        values: over source.
        image: which of several images, counted from 0.

    Raises:
        ValueError: no such image, or several and not said which.
    """
    require(values, "source")
    of_image = values["image"].values
    images = np.unique(of_image[of_image >= 0]).tolist()
    if image is None and len(images) == 1:
        image = images[0]
    if image not in images:
        got = f"image={image}" if image is not None and images else f"{len(images)} images"
        raise ValueError(
            f"expected tokens of one image, got {got}" + f"; say image= of {images}" * bool(images)
        )
    visual = values.isel(source=of_image == image)
    view = visual["view"].values if "view" in visual.coords else np.zeros(visual.size, dtype=int)
    grid = arranged(visual.values, view, visual["row"].values, visual["column"].values)
    coords = {"row": np.arange(grid.shape[0]), "column": np.arange(grid.shape[1])}
    attributes = values.attrs | {"units": "logit"}
    return Map(grid, dims=("row", "column"), coords=coords, name=values.name, attrs=attributes)


def arranged(
    values: Float[np.ndarray, " token"],
    view: Int[np.ndarray, " token"],
    row: Int[np.ndarray, " token"],
    column: Int[np.ndarray, " token"],
) -> Float[np.ndarray, "row column"]:
    """One image's tokens on the grid of its finest view, which sums to those that have pixels.

    A cell of a coarser view gives each cell behind it a share by area. Tokens without pixels (the
    ends of an image's lines, in some models) are on no grid.

    Args:
        values: of one image's visual tokens.
        view, row, column: their coordinates, as in every dataset.

    Raises:
        ValueError: no token has a known place.
    """
    if not (row[view == 0] >= 0).any():
        raise ValueError(
            "expected visual tokens whose place on the image is known, got none; ask with a VLM "
            "and a sample instead of a model and a batch"
        )
    grids = []
    for number in np.unique(view).tolist():
        is_here = (view == number) & (row >= 0)
        grid = np.zeros((row[is_here].max() + 1, column[is_here].max() + 1), dtype=values.dtype)
        grid[row[is_here], column[is_here]] = values[is_here]
        grids.append(grid)
    fine = grids[0]
    for coarse in grids[1:]:
        down, across = (_shares(n, m) for n, m in zip(fine.shape, coarse.shape, strict=True))
        fine = fine + down @ coarse @ across.T
    return fine


def _shares(n_fine: int, n_coarse: int) -> Float[np.ndarray, "fine coarse"]:
    """Share of each coarse cell that lies in each fine one, along one axis."""
    edges = np.arange(n_fine + 1) / n_fine * n_coarse
    start = np.maximum(edges[:-1, None], np.arange(n_coarse))
    stop = np.minimum(edges[1:, None], np.arange(1, n_coarse + 1))
    return np.maximum(stop - start, 0)
