"""Source depth: what a direct term is made of (METHODS.md 2.1).

Eq. 1 reads the residual stream at position p before layer l, so it is direct from the *position*,
not from the input token. With the norm at p frozen, its value is linear in

    h_p^{l-1} = h_p^0 + Σ_{m<l} (A_p^m + F_p^m + D_p^m)

and each direct term splits exactly by origin: `embed`, the one-hop path from the embedding;
`attention`, what heads of earlier layers wrote at p (V-composition); `bias`, value biases written
there, and biases of W_o; `ffn`, what FFNs wrote at the source position. Where the image enters
later layers too (DeepStack), `image level l` is what was added behind layer l.
"""

from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from interp.algebra.readout import Readout
from interp.model.linear import apply_linear, constant_of, transpose_apply
from interp.model.parts import Parts


@dataclass(frozen=True)
class Written:
    """All that enters the stream at every token."""

    embed: Float[Tensor, "token d_model"]
    levels: Float[Tensor, "level token d_model"]
    """Added behind the first layers."""
    layers: Float[Tensor, "kind layer token d_model"]
    """Written by each layer: attention without bias, bias, and FFN."""


def stream_origins(
    parts: Parts, readout: Readout, stream: dict[str, Float[Tensor, "layer token d_model"]]
) -> Written:
    """All that enters every token's stream, from outside the layers and from each of them.

    Args:
        parts, readout: the model's parts, and its value biases.
        stream: as `capture.residual` gives it.
    """
    dtype = readout.vectors.dtype
    attention, ffn = stream["attn_out"].to(dtype), stream["ffn_out"].to(dtype)
    biases = []
    for layer, module in enumerate(parts.layers):
        heads = readout.biases[layer].repeat_interleave(parts.n_heads // parts.n_kv_heads, dim=0)
        behind = constant_of(module.o_proj, heads.dtype)
        biases.append(apply_linear(module.o_proj, rearrange(heads, "h d -> 1 (h d)")) + behind)
    bias = repeat(torch.stack(biases), "l 1 d -> l p d", p=attention.shape[1])
    return Written(
        embed=stream["resid_pre"][0].to(dtype),
        levels=stream["injected"][: parts.n_injected].to(dtype),
        layers=torch.stack([attention - bias, bias, ffn]),
    )


def origin_scores(
    parts: Parts,
    readout: Readout,
    resid_pre: Float[Tensor, "token d_model"],
    origins: Float[Tensor, "origin token d_model"],
    layer: int,
) -> Float[Tensor, "target head token origin"]:
    """u·W_o W_v N x for what each origin wrote at each token, N the norm frozen at the token.

    Args:
        parts, readout: the model's parts and the folded readouts.
        resid_pre: the stream before the layer.
        origins: parts of it, which sum to it.
        layer: the layer whose heads read them.
    """
    module = parts.layers[layer]
    folded = readout.folded[layer]
    n_targets, n_heads, d_head = folded.shape
    groups = torch.arange(n_heads, device=folded.device) // (n_heads // parts.n_kv_heads)
    placed = folded.new_zeros(n_targets, n_heads, parts.n_kv_heads, d_head)
    placed[:, torch.arange(n_heads, device=folded.device), groups] = folded
    back = transpose_apply(module.v_proj, rearrange(placed, "t h kv d -> (t h) (kv d)"))
    back = back * parts.weight_of(module.attention_norm).detach().to(back.dtype)
    square = resid_pre.to(back.dtype).square().mean(dim=-1)
    normed = origins * rearrange(torch.rsqrt(square + parts.epsilon), "p -> 1 p 1")
    scores = torch.einsum("nd,opd->npo", back, normed)
    return rearrange(scores, "(t h) p o -> t h p o", h=n_heads)


def summed_origins(written: Written, n_layers_before: int) -> Float[Tensor, "origin token d_model"]:
    """The stream before a layer as embed, attention, bias, ffn and the image's levels."""
    by_kind = written.layers[:, :n_layers_before].sum(dim=1)
    return torch.cat([written.embed[None], by_kind, _levels_before(written, n_layers_before)])


def layered_origins(
    written: Written, n_layers_before: int
) -> Float[Tensor, "origin token d_model"]:
    """The stream before a layer as embed, each layer's attention, bias and ffn, and the levels.

    What later layers write is 0, so that the axis is the same for every layer.
    """
    layers: Int[Tensor, " layer"] = torch.arange(
        written.layers.shape[1], device=written.layers.device
    )
    before = rearrange(layers < n_layers_before, "l -> 1 l 1 1")
    parts = rearrange(written.layers * before, "o l p d -> (o l) p d")
    return torch.cat([written.embed[None], parts, _levels_before(written, n_layers_before)])


def _levels_before(written: Written, n_layers_before: int) -> Float[Tensor, "level token d_model"]:
    """The levels, 0 where they are added behind a later layer."""
    levels = torch.zeros_like(written.levels)
    levels[:n_layers_before] = written.levels[:n_layers_before]
    return levels
