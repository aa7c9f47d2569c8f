"""Where visual tokens look: the grids of cells that a processor lays over an image.

An image is seen in one or several *views*, each a grid of cells with one token to each. How many
there are, and in which order their tokens come, is told by the settings of the image processor:

    merge_size              one view; several patches are merged into each token
    crop_to_patches         tiles that make a mosaic of the image, then the whole image, small
    do_image_splitting      the same, each tile behind a mark that says its place
    image_grid_pinpoints    the whole image, small, then a mosaic of tiles without the padding, and
                            at the end of each of its rows a token that stands for no pixels
    do_pan_and_scan         one view of the whole image, squeezed into a square

View 0 is the mosaic, or the only one; view 1 is the small one beside it.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isqrt, sqrt

import numpy as np
from jaxtyping import Int
from transformers.image_processing_utils import select_best_resolution
from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

_MARK = re.compile(rb"<row_(\d+)_col_(\d+)>$")


@dataclass(frozen=True)
class View:
    """A grid of cells over one image; its tokens in the order of the sequence."""

    image: int
    """Number of the image."""
    number: int
    """0 for the finest view of the image, 1 for a coarser one beside it."""
    row: Int[np.ndarray, " token"]
    """Row of each token's cell, from the top; -1 where a token stands for no pixels."""
    column: Int[np.ndarray, " token"]
    shape: tuple[int, int]
    """Rows and columns."""
    extent: tuple[float, float, float, float] = (0.0, 1.0, 0.0, 1.0)
    """Where the grid lies on the image: top, bottom, left, right in fractions of its sides."""


@dataclass(frozen=True)
class Seen:
    """A sequence's inputs, from which its views are read."""

    processor: object
    batch: Mapping
    sizes: list[tuple[int, int]] | None
    """(height, width) of the images as the processor got them; None if that is not known."""
    before: list[bytes]
    """The text in front of each run of visual tokens."""


def visual_token_id(processor) -> int:
    """The token that stands for a cell; some processors call their prompts' placeholder so."""
    own, ids = processor.image_token_id, processor.image_token_ids
    return own if own in ids else ids[0]


def views(seen: Seen) -> list[View]:
    """The views of all images, in the order in which their tokens come.

    Raises:
        ValueError: an image processor of another kind, or sizes that are needed and not known.
    """
    image_processor = seen.processor.image_processor
    for setting, of_scheme in _SCHEMES.items():
        if hasattr(image_processor, setting):
            return of_scheme(seen)
    raise ValueError(
        f"expected an image processor with one of the settings {list(_SCHEMES)}, got "
        f"{type(image_processor).__name__}, whose tokens have no known place on the image"
    )


def cell_size(processor) -> int | None:
    """Side of a finest view's cell in pixels, where an image can be brought to whole cells.

    A processor gives an image of whole cells the views that it gave the sample's own. With padding
    it would not, so that there None means: take the image as it is.
    """
    image_processor = processor.image_processor
    if hasattr(image_processor, "merge_size"):
        return image_processor.patch_size * image_processor.merge_size
    if hasattr(image_processor, "crop_to_patches"):
        return dict(image_processor.size)["height"] // isqrt(processor.image_seq_length)
    if hasattr(image_processor, "do_image_splitting"):
        side = isqrt(processor.image_seq_len)
        return dict(image_processor.max_image_size)["longest_edge"] // side
    if hasattr(image_processor, "do_pan_and_scan"):
        return dict(image_processor.size)["height"] // isqrt(processor.image_seq_length)
    return None


def merged_views(grids: list[list[int]], merge: int) -> list[View]:
    """One row-major view of each image, `merge` x `merge` patches to a token.

    Args:
        grids: frames, rows and columns of patches of each image.
        merge: the tower's.
    """
    found = []
    for image, (frames, height, width) in enumerate(grids):
        shape = height // merge, width // merge
        row, column = np.indices(shape).reshape(2, -1)
        found.append(View(image, 0, np.tile(row, frames), np.tile(column, frames), shape))
    return found


def _merged(seen: Seen) -> list[View]:
    grids = seen.batch["image_grid_thw"].tolist() if "image_grid_thw" in seen.batch else []
    return merged_views(grids, seen.processor.image_processor.merge_size)


def _mosaic(image: int, tiles: tuple[int, int], side: int) -> list[View]:
    """Tiles row by row, each of side x side tokens; behind several, the small view."""
    row, column = np.indices((side, side)).reshape(2, -1)
    at = [(r * side + row, c * side + column) for r in range(tiles[0]) for c in range(tiles[1])]
    rows, columns = (np.concatenate(axis) for axis in zip(*at, strict=True))
    found = [View(image, 0, rows, columns, (tiles[0] * side, tiles[1] * side))]
    if len(at) > 1:
        found.append(View(image, 1, row, column, (side, side)))
    return found


def _cropped(seen: Seen) -> list[View]:
    processor = seen.processor
    if seen.sizes is None:
        raise ValueError(
            "expected the images' sizes, which say how their tiles lie, got inputs alone; ask with "
            "a VLM and a sample"
        )
    settings = processor._merge_kwargs()["images_kwargs"]
    own = processor.image_processor
    chosen = {
        name: settings.get(name, getattr(own, name))
        for name in ("crop_to_patches", "min_patches", "max_patches", "size")
    }
    tile = dict(chosen["size"])["height"], dict(chosen["size"])["width"]
    found = []
    for image, size in enumerate(seen.sizes):
        columns, rows = 1, 1
        if chosen["crop_to_patches"]:
            limits = chosen["min_patches"], chosen["max_patches"]
            columns, rows = get_optimal_tiled_canvas(tuple(size), tile, *limits)
        found += _mosaic(image, (rows, columns), isqrt(processor.image_seq_length))
    return found


def _split(seen: Seen) -> list[View]:
    """Marks in front of the tiles say their places; the small view ends an image."""
    side = isqrt(seen.processor.image_seq_len)
    found, tiles, image = [], (1, 1), 0
    for text in seen.before:
        mark = _MARK.search(text)
        if mark:
            tiles = int(mark[1]), int(mark[2])  # of the last one in the end
        else:
            found += _mosaic(image, tiles, side)
            tiles, image = (1, 1), image + 1
    return found


def _any_resolution(seen: Seen) -> list[View]:
    processor, found = seen.processor, []
    if "image_sizes" not in seen.batch:
        return []
    sizes, side = seen.batch["image_sizes"].tolist(), isqrt(processor.num_image_tokens)
    row, column = np.indices((side, side)).reshape(2, -1)
    together = [n for n in seen.batch["batch_num_images"].tolist() for _ in range(n)]
    for image, size in enumerate(sizes):
        if together[image] > 1:  # several images are padded to squares and not tiled
            found.append(_padded(image, size, side))
            continue
        found.append(View(image, 1, row, column, (side, side)))
        found.append(_unpadded(processor, image, size, side))
    return found


def _padded(image: int, size: list[int], side: int) -> View:
    """A picture padded to a square: cells of padding alone have no pixels, nor has the end."""
    longest = max(size)
    rows, columns = (_inside(own, longest, side) for own in size)
    row, column = np.indices((side, side)).reshape(2, -1)
    has_pixels = np.isin(row, rows) & np.isin(column, columns)
    row, column = np.where(has_pixels, (row - rows[0], column - columns[0]), -1)
    edges = [
        (place * longest / side - (longest - own) // 2) / own
        for own, places in zip(size, (rows, columns), strict=True)
        for place in (places[0], places[-1] + 1)
    ]
    row, column = np.append(row, -1), np.append(column, -1)
    return View(image, 0, row, column, (len(rows), len(columns)), tuple(edges))


def _inside(own: int, longest: int, side: int) -> Int[np.ndarray, " place"]:
    """Cells along an axis that hold some of a picture in the middle of a longer square."""
    start = (longest - own) // 2
    first, last = start * side // longest, -(-(start + own) * side // longest)
    return np.arange(first, last)


def _unpadded(processor, image: int, size: list[int], side: int) -> View:
    """The mosaic of any resolution: padding cut off, then shrunk where tokens are too many."""
    height, width = size
    pinpoints = processor.image_processor.image_grid_pinpoints
    best = select_best_resolution(size, pinpoints)
    tile = dict(processor.image_processor.size)
    tile = tile.get("height") or tile["shortest_edge"]
    rows, columns = side * (best[0] // tile), side * (best[1] // tile)
    extent = (0.0, 1.0, 0.0, 1.0)
    if width / height > columns / rows:
        inside = height * columns / width
        cut = (rows - int(round(inside, 7))) // 2
        rows, full = rows - 2 * cut, rows
        top = (cut - (full - inside) / 2) / inside
        extent = (top, top + rows / inside, 0.0, 1.0)
    else:
        inside = width * rows / height
        cut = (columns - int(round(inside, 7))) // 2
        columns, full = columns - 2 * cut, columns
        left = (cut - (full - inside) / 2) / inside
        extent = (0.0, 1.0, left, left + columns / inside)
    most = int(processor.vision_aspect_ratio.removeprefix("anyres_max_"))
    ratio = sqrt(rows * columns / (most * side**2))
    if ratio > 1.1:
        rows, columns = int(rows // ratio), int(columns // ratio)
    row, column = np.indices((rows, columns + 1))
    is_end = column == columns
    row, column = np.where(is_end, -1, row).ravel(), np.where(is_end, -1, column).ravel()
    return View(image, 0, row, column, (rows, columns), extent)


def _squeezed(seen: Seen) -> list[View]:
    processor = seen.processor
    settings = processor._merge_kwargs()["images_kwargs"]
    if settings.get("do_pan_and_scan", processor.image_processor.do_pan_and_scan):
        raise ValueError(
            "expected images that are seen whole, got do_pan_and_scan=True, whose crops have no "
            "place in a map yet; switch it off in the processor"
        )
    side = isqrt(processor.image_seq_length)
    n_visual = int((seen.batch["input_ids"][0] == visual_token_id(processor)).sum())
    return [one for image in range(n_visual // side**2) for one in _mosaic(image, (1, 1), side)]


_SCHEMES: dict[str, Callable[[Seen], list[View]]] = {
    "merge_size": _merged,
    "crop_to_patches": _cropped,
    "do_image_splitting": _split,
    "image_grid_pinpoints": _any_resolution,
    "do_pan_and_scan": _squeezed,
}
