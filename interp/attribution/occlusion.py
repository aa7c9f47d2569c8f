"""Occlusion (Zeiler and Fergus 2014): paint over one patch at a time; one forward per patch."""

import numpy as np
import torch
import xarray as xr
from PIL import Image

from interp.attribution.target import ask_one
from interp.data.images import blank, open_image
from interp.data.sample import Sample
from interp.inputs.completions import Completion
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
    tokens, visual = prefilled.query.tokens, prefilled.visual.cpu().numpy()
    cell = vlm.processor.image_processor.patch_size * vlm.processor.image_processor.merge_size
    size = (int(tokens.column.max()) + 1) * cell, (int(tokens.row.max()) + 1) * cell
    image = np.asarray(open_image(sample.image).resize(size, Image.Resampling.BICUBIC))
    empty = np.asarray(blank(vlm.processor, size))
    canvases = [image]
    for row, column in zip(tokens.row[visual], tokens.column[visual], strict=True):
        at = np.s_[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
        canvas = image.copy()
        canvas[at] = empty[at]
        canvases.append(canvas)
    logits = []
    with undisturbed(prefilled.query.model):
        for start in range(0, len(canvases), AT_ONCE):
            some = [Image.fromarray(one) for one in canvases[start : start + AT_ONCE]]
            pixels = vlm.processor.image_processor(images=some, return_tensors="pt")["pixel_values"]
            logits.append(prefilled.logits(pixels.to(prefilled.query.batch["pixel_values"])))
    image_logits = torch.cat(logits)
    return prefilled.on_grid(image_logits[0] - image_logits[1:], "occlusion")
