"""Images with boxes, maps over them, and tokens as a strip: one labelled array → one Axes."""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from PIL import Image

from interp.data.images import open_image
from interp.vocabulary import require

LEAST_ALPHA, MOST_ALPHA = 0.15, 0.65  # what is below shows even where the map is largest
VISIBLE = 0.05  # of the scale's end: what is lower has no colour to speak of


def scene(image, boxes: np.ndarray | None, ax: Axes) -> Axes:
    """The image, in any form that `Sample` takes, with its evidence boxes in 0..1, if any."""
    image = image if isinstance(image, Image.Image) else open_image(image)
    ax.imshow(image, extent=(0, 1, 1, 0), aspect=image.height / image.width)
    _draw_boxes(boxes, ax, "white")
    return _bare(ax)


def signed_map(
    array: xr.DataArray, boxes: np.ndarray | None, ax: Axes, *, limit: float, aspect: float
) -> Axes:
    """A signed map over the patches with the evidence boxes; red raises the logit, blue lowers it.

    What lowers it is hatched besides, so that signs survive a print without colours.

    Args:
        array: over (row, column).
        boxes: (x0, y0, x1, y1) in 0..1; None for none.
        limit: the colour scale runs from -limit to limit, so that maps can be compared.
        aspect: height over width of the image.
    """
    require(array, "row", "column")
    values = array.transpose("row", "column").values
    ax.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, extent=(0, 1, 1, 0), aspect=aspect)
    _hatch(values < -VISIBLE * limit, ax, extent=(0.0, 1.0, 0.0, 1.0))
    _draw_boxes(boxes, ax, "black")
    return _bare(ax)


def overlay(
    image: Image.Image,
    saliency: xr.DataArray,
    boxes: np.ndarray | None,
    ax: Axes,
    *,
    limit: float = 0.0,
) -> Axes:
    """The image in grey under a map that is not negative, with the evidence boxes.

    Lightness alone tells low from high (magma), so that it survives print and colour blindness;
    where the map is 0 the image shows.

    Args:
        image: in any size.
        saliency: over (row, column); negative values are drawn as 0.
        boxes: (x0, y0, x1, y1) in 0..1; None for none.
        limit: top of the colour scale; 0 for the map's own maximum.
    """
    require(saliency, "row", "column")
    values = np.clip(np.asarray(saliency.transpose("row", "column"), dtype=float), 0, None)
    top = limit or float(values.max()) or 1.0
    aspect = image.height / image.width
    grey = np.asarray(image.convert("L")) / 255
    ax.imshow(0.35 + 0.65 * grey, cmap="gray", vmin=0, vmax=1, extent=(0, 1, 1, 0), aspect=aspect)
    shade = np.clip(values / top, 0, 1)
    ax.imshow(
        values,
        cmap="magma",
        vmin=0,
        vmax=top,
        alpha=LEAST_ALPHA + (MOST_ALPHA - LEAST_ALPHA) * shade,
        extent=(0, 1, 1, 0),
        aspect=aspect,
    )
    _draw_boxes(boxes, ax, "#56B4E9")
    return _bare(ax)


def token_strip(values: xr.DataArray, ax: Axes, *, limit: float = 0.0) -> Axes:
    """Thinking and answer tokens as a strip of coloured cells with their text, signed.

    Args:
        values: over target with the coordinates target_token and target_role.
        limit: the scale runs from -limit to limit; 0 for the largest absolute value.
    """
    require(values, "target")
    top = limit or float(np.abs(values).max()) or 1.0
    ax.imshow(values.values[np.newaxis], cmap="RdBu_r", vmin=-top, vmax=top, aspect="auto")
    is_below = values.values[np.newaxis] < -VISIBLE * top
    _hatch(is_below, ax, extent=(-0.5, values.sizes["target"] - 0.5, -0.5, 0.5))
    texts = [
        str(token).replace("\n", "↵").strip() or "␣" for token in values["target_token"].values
    ]
    for k, text in enumerate(texts):
        dark = abs(float(values[k])) > 0.6 * top
        ax.text(
            k,
            0,
            text,
            ha="center",
            va="center",
            rotation=90,
            fontsize=7,
            color="white" if dark else "black",
            parse_math=False,  # a dollar is a dollar, whatever the caller's style
        )
    roles = values["target_role"].values
    for k in range(1, len(roles)):
        if roles[k] != roles[k - 1]:
            ax.axvline(k - 0.5, color="black", linewidth=1.5)
    ax.set(yticks=[], xticks=[], xlabel=" │ ".join(dict.fromkeys(map(str, roles))), ylabel="")
    ax.grid(visible=False)
    return ax


def _hatch(is_hatched: np.ndarray, ax: Axes, extent: tuple[float, float, float, float]) -> None:
    """Strokes over some cells of a grid."""
    x0, x1, y0, y1 = extent
    n_rows, n_columns = is_hatched.shape
    width, height = (x1 - x0) / n_columns, (y1 - y0) / n_rows
    for row, column in np.argwhere(is_hatched):
        corner = x0 + column * width, y0 + row * height
        ax.add_patch(
            plt.Rectangle(
                corner, width, height, fill=False, hatch="///", linewidth=0, edgecolor="0.35"
            )
        )


def _draw_boxes(boxes: np.ndarray | None, ax: Axes, color: str) -> None:
    for x0, y0, x1, y1 in () if boxes is None else boxes:
        ax.add_patch(
            plt.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color=color, linewidth=1.4)
        )


def _bare(ax: Axes) -> Axes:
    ax.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(1, 0))
    ax.grid(visible=False)
    return ax
