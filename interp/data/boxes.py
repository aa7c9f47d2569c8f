"""Evidence boxes on the grid of visual tokens: exact area overlap, and which cells are evidence."""

import numpy as np
from jaxtyping import Bool, Float

EVIDENCE_OVERLAP = 0.5
SLACK = 0.01  # of a side: what annotators' rounding puts outside the image is brought in


def box_overlap(
    boxes: Float[np.ndarray, "box 4"], n_rows: int, n_columns: int
) -> Float[np.ndarray, "row column"]:
    """Share of each cell's area inside the union of the boxes, exact.

    The plane is cut along every edge of a box or a cell; each piece is wholly inside or outside.
    """
    x = np.unique(np.concatenate([boxes[:, [0, 2]].ravel(), np.linspace(0, 1, n_columns + 1)]))
    y = np.unique(np.concatenate([boxes[:, [1, 3]].ravel(), np.linspace(0, 1, n_rows + 1)]))
    x_mid, y_mid = (x[:-1] + x[1:]) / 2, (y[:-1] + y[1:]) / 2
    inside = np.zeros((len(y_mid), len(x_mid)), dtype=bool)
    for x0, y0, x1, y1 in boxes:
        inside |= np.outer((y_mid > y0) & (y_mid < y1), (x_mid > x0) & (x_mid < x1))
    area = inside * np.outer(np.diff(y), np.diff(x))
    cells = np.zeros((n_rows, n_columns))
    r = np.minimum((y_mid * n_rows).astype(int), n_rows - 1)
    c = np.minimum((x_mid * n_columns).astype(int), n_columns - 1)
    np.add.at(cells, np.ix_(r, c), area)
    return np.clip(cells * n_rows * n_columns, 0, 1)


def evidence_cells(
    boxes: Float[np.ndarray, "box 4"], n_rows: int, n_columns: int
) -> Bool[np.ndarray, "row column"]:
    """Cells at least half inside the union of the boxes, and of each box the cell it covers most.

    So no box is without a cell, however small it is or however it lies across cells.
    """
    cells = box_overlap(boxes, n_rows, n_columns) >= EVIDENCE_OVERLAP
    for box in boxes:
        own = box_overlap(box[np.newaxis], n_rows, n_columns)
        cells[np.unravel_index(own.argmax(), own.shape)] = True
    return cells


def as_boxes(boxes, name: str) -> np.ndarray:
    """Boxes as an array, given as one or as lists of numbers.

    Raises:
        ValueError: anything else; `name` says whose they are.
    """
    try:
        return np.asarray(boxes, dtype=np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(
            f"{name}: expected boxes [[x0, y0, x1, y1], …] of numbers, got {boxes!r:.80}"
        ) from error


def brought_in(boxes: Float[np.ndarray, "box 4"]) -> Float[np.ndarray, "box 4"]:
    """Boxes whose sides lie outside 0..1 by at most `SLACK`, moved onto the image's border.

    What is further outside, or not finite, stays as it is, for `check_boxes` to refuse.
    """
    inside = np.clip(boxes, 0, 1)
    return np.where(np.abs(boxes - inside) <= SLACK + 1e-9, inside, boxes)


def is_usable(boxes: Float[np.ndarray, "box 4"]) -> Bool[np.ndarray, " box"]:
    """Which boxes are finite, inside 0..1 and of positive area."""
    is_inside = (np.isfinite(boxes) & (boxes >= 0) & (boxes <= 1)).all(axis=1)
    return is_inside & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)


def check_boxes(boxes: np.ndarray, name: str = "sample") -> None:
    """Raises ValueError unless every box is finite, inside 0..1 and of positive area."""
    if boxes is None:
        raise ValueError(f"{name}: expected boxes [(x0, y0, x1, y1), …] to score against, got none")
    if not isinstance(boxes, np.ndarray):
        raise ValueError(
            f"{name}: expected boxes as an array of shape (k, 4), got {type(boxes).__name__}; "
            "numpy.array(boxes, float)"
        )
    if boxes.ndim != 2 or boxes.shape[1] != 4 or len(boxes) == 0:
        raise ValueError(
            f"{name}: expected boxes of shape (k, 4) with k >= 1, got {boxes.shape}; "
            "use boxes=None where there is no annotation"
        )
    if not is_usable(boxes).all():
        raise ValueError(
            f"{name}: expected boxes (x0, y0, x1, y1) in 0..1 with x0 < x1 and y0 < y1, "
            f"got {boxes.tolist()}; divide by the image's width and height and clamp"
        )
