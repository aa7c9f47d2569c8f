"""Class activation maps: the target's logit at the visual rows, and Grad-CAM."""

import torch
import xarray as xr

from interp.attribution.target import ask_one
from interp.data.sample import Sample
from interp.inputs.completions import Completion
from interp.maps.named import Wanted
from interp.model.state import undisturbed
from interp.model.vlm import VLM


@torch.no_grad()
def cam(
    vlm: VLM, sample: Sample, target: Wanted, *, completion: Completion | None = None
) -> xr.DataArray:
    """Class activation map: the target's logit read at each visual row, signed.

    Raises:
        ValueError: as `ask_one`.
    """
    prefilled = ask_one(vlm, sample, target, completion)
    with undisturbed(prefilled.query.model):
        arguments = prefilled.context.given | {"use_cache": False}
        hidden = prefilled.parts.run(arguments).last_hidden_state[0, prefilled.visual]
        values = hidden.to(prefilled.reader.dtype) @ prefilled.reader
    return prefilled.on_grid(values, "CAM")


def grad_cam(
    vlm: VLM, sample: Sample, target: Wanted, *, completion: Completion | None = None
) -> xr.DataArray:
    """ReLU(Σ_d ḡ_d a_d) at the visual tokens' content (Selvaraju et al. 2017), ḡ the mean gradient.

    Raises:
        ValueError: as `ask_one`.
    """
    prefilled = ask_one(vlm, sample, target, completion)
    with undisturbed(prefilled.query.model), torch.enable_grad():
        content = prefilled.context.content.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(prefilled.logit(content), content)
        visual = prefilled.visual
        activation, gradient = (x[visual].detach().float() for x in (content, gradient))
        values = (activation @ gradient.mean(dim=0)).clamp(min=0)
    return prefilled.on_grid(values, "Grad-CAM")
