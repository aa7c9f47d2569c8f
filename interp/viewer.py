"""An interactive viewer for notebooks: choose method, token, layer and head, and see the map."""

import io

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

from interp import extract, plots
from interp.attribution import METHODS
from interp.data.images import open_image
from interp.data.sample import Sample
from interp.inputs.completions import Completion
from interp.maps.grid import on_grid
from interp.model.vlm import VLM

DIRECT = "direct (Eq. 1)"
ALL = -1


def viewer(vlm: VLM, sample: Sample, *, completion: Completion | None = None) -> widgets.VBox:
    """Sliders for token, layer and head, a menu of methods, and the overlay they choose.

    Layers and heads are told apart by Eq. 1 alone; other methods leave their sliders idle. Maps are
    made when they are first looked at, and kept.

    Raises:
        ValueError: as `interp.extract.ledger`.
    """
    ledger = extract.ledger(vlm, sample, completion=completion)
    method = widgets.Dropdown(options=list(METHODS), value=DIRECT, description="method")
    last = ledger.sizes["target"] - 1
    token = widgets.IntSlider(value=last, min=0, max=last, description="token")
    layer, head = (
        widgets.IntSlider(value=ALL, min=ALL, max=ledger.sizes[dim] - 1, description=dim)
        for dim in ("layer", "head")
    )
    same_scale = widgets.Checkbox(value=False, description="same scale for all tokens")
    picture, label = widgets.Image(format="png"), widgets.HTML()
    image, maps = open_image(sample.image), {}

    def look(_change=None):
        layer.disabled = head.disabled = method.value != DIRECT
        if method.value == DIRECT:
            saliency = direct_map(ledger, token.value, layer.value, head.value)
        else:
            key = method.value, token.value
            if key not in maps:
                maps[key] = METHODS[method.value](vlm, sample, token.value, completion=completion)
            saliency = maps[key]
        limit = _largest(ledger, layer.value, head.value) if same_scale.value else 0.0
        picture.value = _drawn(image, saliency, sample.boxes, limit)
        label.value = _caption(ledger, token.value, saliency)

    for control in (method, token, layer, head, same_scale):
        control.observe(look, names="value")
    look()
    controls = widgets.VBox([method, token, layer, head, same_scale, label])
    return widgets.VBox([widgets.HBox([controls, picture])])


def direct_map(ledger: xr.Dataset, target: int, layer: int, head: int) -> xr.DataArray:
    """Eq. 1 of one target on the grid, of one layer and head or (-1) of all."""
    direct = ledger["direct"].isel(target=target)
    for dim, chosen in (("layer", layer), ("head", head)):
        direct = direct.sum(dim, skipna=False) if chosen == ALL else direct.isel({dim: chosen})
    return on_grid(direct)


def _largest(ledger: xr.Dataset, layer: int, head: int) -> float:
    """The largest value of Eq. 1 on the image over all targets, of these layers and heads."""
    return max(
        float(direct_map(ledger, k, layer, head).max()) for k in range(ledger.sizes["target"])
    )


def _drawn(image, saliency: xr.DataArray, boxes, limit: float) -> bytes:
    """The overlay as PNG."""
    figure, ax = plt.subplots(figsize=(4.4, 3.6), layout="constrained")
    plots.overlay(image, saliency, np.zeros((0, 4)) if boxes is None else boxes, ax, limit=limit)
    unit = f" [{saliency.attrs['units']}]" if "units" in saliency.attrs else ""
    figure.colorbar(ax.images[-1], ax=ax, label=f"map{unit}, where positive", shrink=0.8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()


def _caption(ledger: xr.Dataset, target: int, saliency: xr.DataArray) -> str:
    """The token among its neighbours, and the map's range."""
    from html import escape

    tokens = [escape(str(token).replace("\n", "↵")) for token in ledger["target_token"].values]
    tokens[target] = f"<b>[{tokens[target]}]</b>"
    near = "".join(tokens[max(0, target - 8) : target + 9])
    role = ledger["target_role"].values[target]
    return (
        f"{role}: …{near}…<br>map from {float(saliency.min()):.3g} to {float(saliency.max()):.3g}"
    )
