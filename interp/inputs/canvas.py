"""An image as its finest view cuts it into cells, for whoever paints on it."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from interp.data.images import open_image
from interp.inputs.tokens import Tokens
from interp.inputs.views import cell_size


@dataclass(frozen=True)
class Canvas:
    """An image and where the cells of its finest view lie on it."""

    pixels: UInt8[np.ndarray, "height width 3"]
    shape: tuple[int, int]
    """Rows and columns of cells."""
    extent: tuple[float, float, float, float]
    """Where the grid lies: top, bottom, left, right in fractions of the image's sides."""

    def cells(self) -> Iterator[tuple[slice, slice]]:
        """Pixels of every cell, row by row."""
        rows, columns = self._edges(0), self._edges(1)
        for top, bottom in pairwise(rows):
            for left, right in pairwise(columns):
                yield slice(top, bottom), slice(left, right)

    def _edges(self, axis: int) -> list[int]:
        size, (start, stop) = self.pixels.shape[axis], self.extent[2 * axis : 2 * axis + 2]
        edges = np.linspace(start, stop, self.shape[axis] + 1) * size
        return np.clip(edges.round().astype(int), 0, size).tolist()


def canvas(processor, image, tokens: Tokens) -> Canvas:
    """The image at a size where each cell has whole pixels, or as it is where it would be padded.

    Args:
        processor: of the model.
        image: of the sample, the only one.
        tokens: of the sample's sequence.

    Raises:
        ValueError: an image that stays as it is and has fewer pixels than cells along a side.
    """
    is_fine = tokens.view == 0
    shape = int(tokens.row[is_fine].max()) + 1, int(tokens.column[is_fine].max()) + 1
    opened, cell = open_image(image), cell_size(processor)
    if cell is not None:
        size = shape[1] * cell, shape[0] * cell
        opened = opened.resize(size, Image.Resampling.BICUBIC)
    # A cell without a pixel cannot be painted: its effect would be 0 whatever the model reads.
    if opened.height < shape[0] or opened.width < shape[1]:
        raise ValueError(
            f"expected an image of at least {shape[1]} x {shape[0]} pixels, one for each cell, got "
            f"{opened.width} x {opened.height}; enlarge it"
        )
    return Canvas(np.asarray(opened), shape, tokens.extent)
