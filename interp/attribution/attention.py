"""Raw attention, and attention rollout (Abnar and Zuidema 2020)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from interp.attribution.target import Asked, ask_one
from interp.capture.replay import replay
from interp.data.sample import Sample
from interp.inputs.completions import Completion
from interp.maps.named import Wanted
from interp.model.parts import Parts
from interp.model.state import attending, undisturbed
from interp.model.vlm import VLM


@torch.no_grad()
def raw_attention(
    vlm: VLM, sample: Sample, target: Wanted, *, completion: Completion | None = None
) -> xr.DataArray:
    """Attention of the target's row to each visual token, mean over layers and heads.

    Raises:
        ValueError: as `ask_one`.
    """
    prefilled = ask_one(vlm, sample, target, completion)
    with undisturbed(prefilled.query.model):
        played = replay(prefilled.query.model, prefilled.context, prefilled.query.rows)
    mean = torch.stack([one[0, 0].mean(dim=0) for one in played.weights]).mean(dim=0)
    return prefilled.on_grid(mean[prefilled.visual], "raw attention")


@torch.no_grad()
def rollout(
    vlm: VLM, sample: Sample, target: Wanted, *, completion: Completion | None = None
) -> xr.DataArray:
    """The target's row of Π_l (A_l + 1) / 2, A_l the mean over heads: attention passed on.

    Raises:
        ValueError: as `ask_one`.
    """
    prefilled = ask_one(vlm, sample, target, completion)
    passed = torch.zeros(len(prefilled.query.tokens.ids), device=prefilled.query.rows.device)
    passed[prefilled.row] = 1.0
    for attention in reversed(_head_means(prefilled)):
        passed = (passed @ attention + passed) / 2
    return prefilled.on_grid(passed[prefilled.visual], "rollout")


def _head_means(prefilled: Asked) -> list[Float[Tensor, "token token"]]:
    """By layer, eager attention of all rows, mean over heads."""
    means: list[Tensor] = []
    parts = prefilled.parts
    with (
        undisturbed(prefilled.query.model),
        attending(parts.language_model, "eager"),
        _keeping(parts, means),
    ):
        parts.run(prefilled.context.given | {"use_cache": False})
    return means


@contextmanager
def _keeping(parts: Parts, means: list) -> Iterator[None]:
    def look(_module, _args, output):
        means.append(output[1][0].float().mean(dim=0))
        return output[0], None  # no layer's matrices by head are kept

    hooks = [layer.attention.register_forward_hook(look) for layer in parts.layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
