"""Gradients with respect to the pixels: input × gradient, and integrated gradients."""

import torch
import xarray as xr
from captum.attr import IntegratedGradients
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from interp.attribution.asked import Asked, ask_one
from interp.inputs import Completion
from interp.model import VLM, undisturbed
from interp.sample import Sample

N_STEPS = 32
AT_ONCE = 8  # steps in one forward


def input_x_gradient(
    vlm: VLM, sample: Sample, target: int, *, completion: Completion | None = None
) -> xr.DataArray:
    """Normalised pixel × gradient of the target's logit, summed over each visual token's pixels.

    Raises:
        ValueError: as `ask_one`.
    """
    asked = ask_one(vlm, sample, target, completion)
    with undisturbed(asked.query.model), torch.enable_grad():
        pixels = asked.query.batch["pixel_values"].detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(_logits(asked, pixels[None])[0], pixels)
    return asked.on_grid(_by_token(asked, (pixels * gradient).detach()), "input × gradient")


def integrated_gradients(
    vlm: VLM,
    sample: Sample,
    target: int,
    *,
    completion: Completion | None = None,
    n_steps: int = N_STEPS,
) -> xr.DataArray:
    """Integrated gradients (Sundararajan et al. 2017) from an image of the processor's mean colour.

    Its values sum to the logit's change up to `convergence_delta`, kept in the attributes with
    `change`, both in logits.

    Raises:
        ValueError: as `ask_one`.
    """
    asked = ask_one(vlm, sample, target, completion)
    pixels = asked.query.batch["pixel_values"].detach()[None]
    blank = torch.zeros_like(pixels)  # normalised: 0 is the mean colour
    method = IntegratedGradients(lambda some: _logits(asked, some), multiply_by_inputs=True)
    with undisturbed(asked.query.model), torch.enable_grad():
        found, delta = method.attribute(
            pixels, blank, n_steps=n_steps, internal_batch_size=AT_ONCE,
            return_convergence_delta=True,
        )  # fmt: skip
        with torch.no_grad():
            change = _logits(asked, pixels) - _logits(asked, blank)
    return asked.on_grid(
        _by_token(asked, found[0].detach()), "integrated gradients",
        convergence_delta=float(delta), change=float(change),
    )  # fmt: skip


def _logits(asked: Asked, pixels: Float[Tensor, "image patch value"]) -> Float[Tensor, " image"]:
    """The target's raw logit with each of some images, from whole forwards."""
    n = len(pixels)
    batch = {name: torch.cat([value] * n) for name, value in asked.query.batch.items()}
    batch["pixel_values"] = rearrange(pixels, "n p v -> (n p) v").to(batch["pixel_values"].dtype)
    out = asked.query.model(**batch, use_cache=False, logits_to_keep=asked.query.rows)
    return out.logits[:, 0, asked.target].to(torch.promote_types(out.logits.dtype, torch.float32))


def _by_token(asked: Asked, values: Float[Tensor, "patch value"]) -> Float[Tensor, " token"]:
    """Sums over the patches that the merger makes one token of; they follow each other."""
    return reduce(values, "(token p) v -> token", "sum", p=asked.where.patches_per_token)
