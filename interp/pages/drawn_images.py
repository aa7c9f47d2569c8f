"""Images of one answer for a page: pictures, and which cell each visual token lies on."""

import base64
from io import BytesIO

import numpy as np
import xarray as xr

from interp.data.images import open_image
from interp.data.sample import Sample
from interp.maps.alignment import chance
from interp.maps.grid import arranged

LONGEST_SIDE = 640
"""Pixels of a picture on a page."""


def drawn_images(ledger: xr.Dataset, sample: Sample | None) -> list[dict]:
    """Each image as a picture, and which cell of its grid each visual token lies on."""
    of_image, visual = ledger["image"].values, np.flatnonzero(ledger["image"].values >= 0)
    found = []
    for number in np.unique(of_image[visual]).tolist():
        own = visual[of_image[visual] == number]
        own = own[(ledger["view"].values[own] >= 0)]
        place = [ledger[name].values[own] for name in ("view", "row", "column")]
        if not ((place[0] == 0) & (place[1] >= 0)).any():
            continue  # a bare batch: where its tokens lie is not known
        grid = arranged(np.zeros(len(own)), *place)
        token, cell, share = spread(own, place)
        image = {
            "rows": grid.shape[0],
            "columns": grid.shape[1],
            "token": np.searchsorted(visual, token).tolist(),
            "cell": cell,
            "share": share,
            "boxes": [],
        }
        if sample is not None and number < len(sample.images):
            image |= _picture(sample.images[number])
            if sample.boxes is not None:
                boxes = np.asarray(sample.boxes, dtype=float)
                image |= {"boxes": boxes.round(5).tolist(), "chance": chance(boxes)}
        found.append(image)
    return found


def spread(own: np.ndarray, place: list[np.ndarray]) -> tuple[list, list, list]:
    """Which share of which token's value lies on which cell: the map's own rule, token by token."""
    is_single = not place[0].any() and (place[1] >= 0).all()
    if is_single:
        n_columns = int(place[2].max()) + 1
        return own, (place[1] * n_columns + place[2]).tolist(), [1] * len(own)
    tokens, cells, shares = [], [], []
    for k, one in enumerate(np.eye(len(own))):
        grid = arranged(one, *place).ravel()
        cell = np.flatnonzero(grid)
        tokens += [own[k]] * len(cell)
        cells += cell.tolist()
        shares += grid[cell].round(6).tolist()
    return tokens, cells, shares


def _picture(image) -> dict:
    """A picture as an address that holds its own data, not larger than a page shows it."""
    picture = open_image(image)
    size = {"width": picture.width, "height": picture.height}
    is_drawn = max(picture.size) <= 128  # a few pixels, which JPEG would blur
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    buffer = BytesIO()
    form = "PNG" if is_drawn else "JPEG"
    picture.save(buffer, form, **({} if is_drawn else {"quality": 88}))
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"src": f"data:image/{form.lower()};base64,{data}", **size}
