"""Occlusion (Zeiler and Fergus 2014): paint over one patch at a time; one forward per patch."""

import numpy as np
import torch
import xarray as xr
from PIL import Image

from interp.attribution.target import ask_one
from interp.data.images import blank
from interp.data.sample import Sample
from interp.inputs.canvas import canvas
from interp.inputs.completions import Completion
from interp.inputs.prompts import image_inputs
from interp.maps.named import Wanted
from interp.model.state import undisturbed
from interp.model.vlm import VLM

AT_ONCE = 16


@torch.no_grad()
def occlusion(
    vlm: VLM, sample: Sample, target: Wanted, *, completion: Completion | None = None
) -> xr.DataArray:
    """How much of the target's logit is lost when a patch has the processor's mean colour.

    Raises:
        ValueError: as `ask_one`.
    """
    prefilled = ask_one(vlm, sample, target, completion)
    grid = canvas(vlm.processor, sample.image, prefilled.query.tokens)
    image, empty = grid.pixels, np.asarray(blank(vlm.processor, grid.pixels.shape[1::-1]))
    canvases = [image]
    for at in grid.cells():
        painted = image.copy()
        painted[at] = empty[at]
        canvases.append(painted)
    logits = []
    with undisturbed(prefilled.query.model):
        for start in range(0, len(canvases), AT_ONCE):
            some = [Image.fromarray(one) for one in canvases[start : start + AT_ONCE]]
            logits.append(prefilled.logits(image_inputs(vlm.processor, some), len(some)))
    image_logits = torch.cat(logits)
    lost = (image_logits[0] - image_logits[1:]).double().cpu().numpy()
    return prefilled.as_map(lost.reshape(grid.shape), "occlusion")
