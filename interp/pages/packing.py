"""Arrays as text for a page: exact numbers as float32, what is only drawn as whole bytes."""

import base64
import zlib

import numpy as np

STEPS = 127
"""A drawn value is a whole number of steps, of which the largest of its map has so many."""


def packed(values: np.ndarray) -> dict:
    """An array as the script unpacks it: dtype, shape, and its bytes compressed, in base64.

    Args:
        values: of a dtype that a browser has, in the order of its bytes.
    """
    values = np.ascontiguousarray(values)
    values = values.astype(values.dtype.newbyteorder("<"), copy=False)
    data = base64.b64encode(zlib.compress(values.tobytes(), 6)).decode()
    return {"dtype": values.dtype.str[1:], "shape": list(values.shape), "data": data}


def exact(values) -> dict:
    """Numbers that are shown or summed, in float32; NaN stays NaN."""
    return packed(np.asarray(values, dtype=np.float32))


def rounded(values) -> dict:
    """Maps that are drawn: steps of a 127th of each map's largest absolute value.

    Args:
        values: (…, cell), a map along the last dimension; one of NaN is drawn as nothing.

    Returns:
        `steps`, whole numbers from -127 to 127, and `limits` (…), the largest absolute values.
    """
    values = np.asarray(values, dtype=np.float64)
    limits = np.abs(np.nan_to_num(values)).max(axis=-1, initial=0.0)
    scale = np.where(limits > 0, limits, 1.0)[..., None]
    steps = np.rint(np.nan_to_num(values) / scale * STEPS).astype(np.int8)
    return {"steps": packed(steps), "limits": exact(limits)}
