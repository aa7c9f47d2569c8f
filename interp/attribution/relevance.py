"""AttnLRP (Achtibat et al. 2024): layer-wise relevance propagation through attention.

Relevance is passed back as input × gradient of the same forward under other local derivatives:

    norm            x ⊙ γ / rms: the rms is a constant             identity rule
    FFN gate        SiLU(g): SiLU(g)/g is a constant               identity rule
    g' ⊙ up         each factor gets half                          uniform rule
    α v             each factor gets half                          uniform rule
    softmax         its derivative, as Taylor's expansion at the scores
    q·k             each factor gets half                          uniform rule

With `through_pattern=False` the pattern α is a constant and v gets everything (the value path
alone): then, without biases, relevance is conserved: over all tokens it sums to the logit.

Layer-wise relevance propagation is patented, and free for personal and scientific use.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import xarray as xr
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface

from interp.attribution.target import Asked, ask_one
from interp.data.sample import Sample
from interp.inputs.completions import Completion
from interp.maps.named import Wanted
from interp.model.parts import Parts
from interp.model.state import attending, undisturbed
from interp.model.vlm import VLM


def attn_lrp(
    vlm: VLM,
    sample: Sample,
    target: Wanted,
    *,
    completion: Completion | None = None,
    through_pattern: bool = True,
) -> xr.DataArray:
    """Relevance of each visual token's content for the target's logit, signed.

    Raises:
        ValueError: as `ask_one`; a mixture of experts, for which there is no rule.
    """
    prefilled = ask_one(vlm, sample, target, completion)
    token_relevance = relevance(prefilled, through_pattern=through_pattern)
    return prefilled.on_grid(token_relevance[prefilled.visual], "AttnLRP")


def relevance(prefilled: Asked, *, through_pattern: bool) -> Float[Tensor, " token"]:
    """Relevance of every token's content.

    Raises:
        ValueError: FFNs that the rules do not know.
    """
    name = "interp_lrp" if through_pattern else "interp_lrp_values"
    parts = prefilled.parts
    if not hasattr(parts.layers[0].ffn, "gate_proj"):
        raise ValueError(
            "expected FFNs with gate_proj, up_proj and down_proj for AttnLRP, got "
            f"{type(parts.layers[0].ffn).__name__}; there is no rule for experts, use another map"
        )
    if parts.layers[0].attention_post_norm:
        raise ValueError(
            "expected layers without norms behind attention for AttnLRP, got some: there is no "
            "rule for them, use another map"
        )
    with (
        undisturbed(prefilled.query.model),
        attending(parts.language_model, name),
        _rules(parts),
        torch.enable_grad(),
    ):
        content = prefilled.context.content.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(prefilled.logit(content), content)
    return (content * gradient).detach().float().sum(dim=-1)


@contextmanager
def _rules(parts: Parts) -> Iterator[None]:
    """Norms and FFNs with the local derivatives of the rules."""
    originals: list[tuple[nn.Module, Callable | None]] = []

    def put(module: nn.Module, forward: Callable) -> None:
        originals.append((module, vars(module).get("forward")))
        module.forward = forward

    for layer in parts.layers:
        for norm in filter(_is_norm, layer.block.modules()):  # of queries and keys, too
            put(norm, partial(_norm, norm))
        put(layer.ffn, partial(_ffn, layer.ffn))
    put(parts.final_norm, partial(_norm, parts.final_norm))
    try:
        yield
    finally:
        for module, forward in originals:
            if forward is None:
                del module.forward
            else:
                module.forward = forward


def _is_norm(module: nn.Module) -> bool:
    return hasattr(module, "variance_epsilon")


def _norm(module: nn.Module, x: Tensor) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + module.variance_epsilon)
    return module.weight * (wide * scale.detach()).to(x.dtype)


def _ffn(module: nn.Module, x: Tensor) -> Tensor:
    gate = module.gate_proj(x)
    # SiLU(g) / g is sigmoid(g), without a division by zero.
    slope = torch.sigmoid(gate) if _is_silu(module.act_fn) else module.act_fn(gate) / gate
    return module.down_proj(_halved(gate * slope.detach()) * _halved(module.up_proj(x)))


def _is_silu(function: nn.Module) -> bool:
    return isinstance(function, nn.SiLU) or type(function).__name__ == "SiLUActivation"


def _halved(x: Tensor) -> Tensor:
    """The same number with half its gradient."""
    return x / 2 + (x / 2).detach()


def _attention(  # noqa: PLR0913, PLR0917 - transformers' signature
    module, query, key, value, attention_mask, scaling, dropout=0.0, *, through_pattern, **_
):
    groups = module.num_key_value_groups
    key, value = (one.repeat_interleave(groups, dim=1) for one in (key, value))
    if through_pattern:
        query, key, value = (_halved(one) for one in (query, key, value))
    scores = (query @ key.mT) * scaling
    n_tokens = scores.shape[-1]
    is_later = torch.ones(n_tokens, n_tokens, dtype=torch.bool, device=scores.device).triu(1)
    weights = scores.masked_fill(is_later, -torch.inf).softmax(dim=-1, dtype=torch.float32)
    weights = weights.to(query.dtype)
    weights = _halved(weights) if through_pattern else weights.detach()
    return rearrange(weights @ value, "s h t d -> s t h d"), None


AttentionInterface.register("interp_lrp", partial(_attention, through_pattern=True))
AttentionInterface.register("interp_lrp_values", partial(_attention, through_pattern=False))
