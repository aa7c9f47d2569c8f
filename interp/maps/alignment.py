"""How much of a map lies on the evidence, and what else would score as high (METHODS.md 4).

A uniform map scores the boxes' share of the area, and attention piles up on borders: so no score
comes without its controls.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import xarray as xr
from jaxtyping import Float

from interp.data.boxes import as_boxes, box_overlap, check_boxes
from interp.vocabulary import describe, require

INSIDE = 1e-9  # of the image: rounding of a shifted side


def alignment(saliency: xr.DataArray, boxes: Float[np.ndarray, "box 4"] | Sequence) -> xr.Dataset:
    """Alignment score Σ w S / Σ S with S = ReLU(map), w the exact overlap of a cell with the boxes.

    Scalars: `alignment`; `chance`, the boxes' share of the area, which a uniform map scores;
    `alignment_shuffled`, the mean over all places to which the boxes' union can be moved, by
    `shifts`, and NaN where there is none; `alignment_center`, a centred rectangle of the same area;
    `border_share` of the mass in the outermost cells, beside their share of the area,
    `border_area`; `has_mass`, without which all scores are 0.

    Args:
        saliency: over (row, column), signed or not.
        boxes: (x0, y0, x1, y1) in 0..1 of the image, an array or lists; their union counts.

    Raises:
        ValueError: not a map, boxes outside 0..1, inverted or empty, or a map that is not finite.
    """
    require(saliency, "row", "column")
    boxes = as_boxes(boxes, "alignment")
    scores = alignment_scores(saliency.transpose("row", "column").values, boxes)
    return describe(xr.Dataset({name: ((), value) for name, value in scores.items()}))


def alignment_scores(
    saliency: Float[np.ndarray, "row column"], boxes: Float[np.ndarray, "box 4"]
) -> dict[str, float | bool]:
    """`alignment` of a bare array: a reward has no time for labels.

    Raises:
        ValueError: as `alignment`.
    """
    check_boxes(boxes, "alignment")
    mass = np.maximum(saliency.astype(np.float64), 0)
    if not np.isfinite(mass).all():
        raise ValueError("expected a finite map, got NaN or inf in it")
    weights = _weights(boxes.astype(np.float64).tobytes(), mass.shape)
    inside, center, border, *elsewhere = (_share(mass, one) for one in weights)
    return {
        "alignment": inside,
        "chance": chance(boxes),
        "alignment_shuffled": float(np.mean(elsewhere)) if elsewhere else np.nan,
        "alignment_center": center,
        "border_share": border,
        "border_area": float(weights[2].mean()),
        "has_mass": bool(mass.sum() > 0),
    }


@lru_cache(maxsize=64)  # a group of completions has one image
def _weights(box_bytes: bytes, shape: tuple[int, int]) -> list[Float[np.ndarray, "row column"]]:
    """How much each cell counts: inside the boxes, a centred square, on the border, elsewhere."""
    boxes = np.frombuffer(box_bytes).reshape(-1, 4)
    side = np.sqrt(chance(boxes))
    center = np.array([[0.5 - side / 2, 0.5 - side / 2, 0.5 + side / 2, 0.5 + side / 2]])
    places = [boxes, center, *(boxes + shift for shift in shifts(boxes, shape))]
    weights = [box_overlap(place, *shape) for place in places]
    return [*weights[:2], _border(shape), *weights[2:]]


def chance(boxes: Float[np.ndarray, "box 4"]) -> float:
    """The share of the image's area inside the union of the boxes."""
    return float(box_overlap(boxes, 1, 1)[0, 0])


def share_inside(mass: Float[np.ndarray, "row column"], boxes: Float[np.ndarray, "box 4"]) -> float:
    """The share of a map that lies inside the union of some boxes; 0 of a map without mass.

    Args:
        mass: not negative.
        boxes: (x0, y0, x1, y1) in 0..1.
    """
    return _share(mass, box_overlap(boxes, *mass.shape))


def _share(mass: np.ndarray, weights: np.ndarray) -> float:
    total = float(mass.sum())
    return float((mass * weights).sum()) / total if total > 0 else 0.0


def shifts(
    boxes: Float[np.ndarray, "box 4"], shape: tuple[int, int]
) -> Float[np.ndarray, "shift 4"]:
    """By how much the boxes can be moved together and stay inside the image, but for not at all.

    Moved one by one they would no longer overlap as they do, and a uniform map would score more
    than the boxes' own area.

    Args:
        boxes: (x0, y0, x1, y1) in 0..1.
        shape: rows and columns of the map; a shift is of whole cells.

    Returns:
        What to add to every box.
    """
    rows, columns = (np.arange(-n, n + 1) / n for n in shape)
    (x0, y0), (x1, y1) = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    rows = rows[(y0 + rows >= -INSIDE) & (y1 + rows <= 1 + INSIDE)]
    columns = columns[(x0 + columns >= -INSIDE) & (x1 + columns <= 1 + INSIDE)]
    found = [(x, y, x, y) for y in rows for x in columns if x or y]
    return np.array(found).reshape(-1, 4)


def _border(shape: tuple[int, int]) -> np.ndarray:
    border = np.ones(shape)
    border[1:-1, 1:-1] = 0
    return border


def released_score(
    saliency: xr.DataArray, box: Float[np.ndarray, "4"], size: tuple[int, int]
) -> float:
    """The released code's score of one box: on pixels, with y1 scaled by the width.

    Right on square images alone; kept to compare with published numbers.

    Args:
        saliency: over (row, column); negative values count as 0.
        box: (x0, y0, x1, y1) in 0..1.
        size: height and width of the image in pixels.
    """
    from PIL import Image

    require(saliency, "row", "column")
    height, width = size
    positive = np.maximum(saliency.transpose("row", "column").values, 0)
    mass = Image.fromarray(positive.astype(np.float32))
    pixels = np.asarray(mass.resize((width, height), Image.Resampling.BILINEAR))
    x0, y0, x1 = int(width * box[0]), int(height * box[1]), int(width * box[2])
    y1 = int(width * box[3])  # sic
    total = float(pixels.sum())
    return float(pixels[y0 : y1 + 1, x0 : x1 + 1].sum()) / total if total > 0 else 0.0
