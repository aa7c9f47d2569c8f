"""Input × gradient of the pixels, and integrated gradients of the visual tokens' content."""

from functools import partial

import torch
import xarray as xr
from captum.attr import IntegratedGradients
from jaxtyping import Float
from torch import Tensor

from interp.attribution.target import Asked, ask_one
from interp.data.images import blank, open_image
from interp.data.sample import Sample
from interp.inputs.completions import Completion
from interp.maps.named import Wanted
from interp.model.state import undisturbed
from interp.model.vlm import VLM, embed

N_STEPS = 32
AT_ONCE = 8  # steps in one forward


def input_x_gradient(
    vlm: VLM, sample: Sample, target: Wanted, *, completion: Completion | None = None
) -> xr.DataArray:
    """Normalised pixel × gradient of the target's logit, summed over each visual token's pixels.

    Raises:
        ValueError: as `ask_one`.
    """
    prefilled = ask_one(vlm, sample, target, completion)
    with undisturbed(prefilled.query.model), torch.enable_grad():
        pixels = prefilled.query.batch["pixel_values"].detach().clone().requires_grad_()
        images = prefilled.query.batch | {"pixel_values": pixels}
        (gradient,) = torch.autograd.grad(prefilled.logits(images)[0], pixels)
    by_token = prefilled.parts.by_token((pixels * gradient).detach())
    return prefilled.on_grid(by_token.sum(dim=-1), "input × gradient")


def integrated_gradients(
    vlm: VLM,
    sample: Sample,
    target: Wanted,
    *,
    completion: Completion | None = None,
    n_steps: int = N_STEPS,
) -> xr.DataArray:
    """Integrated gradients (Sundararajan et al. 2017) of the visual embeddings, from a blank image.

    The values sum to the logit's change up to `convergence_delta`; both are in the attributes. The
    straight path between pixels would start where the tower's first norm divides by nearly nothing,
    and does not converge with hundreds of steps; between the tower's outputs 32 are plenty.

    Raises:
        ValueError: as `ask_one`.
    """
    prefilled = ask_one(vlm, sample, target, completion)
    visual = prefilled.context.content[prefilled.visual].detach()[None]
    empty = embed(vlm, blank(vlm.processor, open_image(sample.image).size))[0].to(visual)[None]
    logits = partial(_logits_of_content, prefilled)
    with undisturbed(prefilled.query.model), torch.enable_grad():
        attributions, delta = IntegratedGradients(logits).attribute(
            visual,
            empty,
            n_steps=n_steps,
            internal_batch_size=AT_ONCE,
            return_convergence_delta=True,
        )
        with torch.no_grad():
            change = logits(visual) - logits(empty)
    return prefilled.on_grid(
        attributions[0].detach().sum(dim=-1),
        "integrated gradients",
        convergence_delta=delta.item(),
        change=change.item(),
    )


def _logits_of_content(
    prefilled: Asked, visual: Float[Tensor, "image patch content"]
) -> Float[Tensor, " image"]:
    """The target's logit with other content of the visual tokens."""
    content = prefilled.context.content.detach()
    return torch.stack(
        [prefilled.logit(content.index_put((prefilled.visual,), one)) for one in visual]
    )
