"""Maps through the thinking text (METHODS.md 4): the bottleneck of Saliency-R1, and two hops.

*Bottleneck* (Saliency-R1 §3.2): in Eq. 1 the weight α_{i,j,p} of each layer and head is replaced by

    Σ_{t∈T} α_{i,j,t} α_{t,j,p}            same layer, same head, no normalisation

What t receives in layer l can only be read from layer l+1 on, so the network does not execute this
product. *Two hops* (ours) are what it does execute, with both OV circuits and the norm at t frozen:

    T_p = Σ_{l1<l2} Σ_{j1,j2,t} α^{l2}_{i,j2,t} α^{l1}_{t,j1,p} u·W_o^{l2} W_v^{l2} N_t^{l2} W_o^{l1} v_p^{l1}

Summed over all p, plus the biases, they are the attention and bias origins (2.1) of T's direct
terms. T is given in parts, because both are linear in it.
"""  # noqa: E501

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from interp.algebra.ledger import slot_scores
from interp.algebra.readout import Readout, fold
from interp.capture.prefill import Prefill
from interp.capture.replay import Replay
from interp.model.linear import transpose_apply
from interp.model.parts import Parts


@dataclass(frozen=True)
class Hops:
    """Attention from targets to some thinking tokens, and from those to everything before them."""

    targets: Replay
    """Replay of the rows that predict the targets."""
    thinking: Replay
    """Replay of the rows at which thinking tokens look; see `looking_rows`."""
    embeddings: Float[Tensor, "thinking d_model"]
    """Vectors that enter the first layer at those rows."""
    columns: Tensor
    """Positions of the thinking tokens, at which the targets look at them."""
    is_between: Bool[Tensor, "target thinking"]
    """t < i."""

    def first(self, layer: int) -> Float[Tensor, "target head thinking"]:
        """α_{i,j,t}, with what a norm behind attention makes of it."""
        weights = self.targets.shares(layer)[0][..., self.columns]
        return weights * rearrange(self.is_between, "i t -> i 1 t")

    def second(self, layer: int) -> Float[Tensor, "thinking head token"]:
        """α_{t,j,p}."""
        return self.thinking.weights[layer][0]

    def written(self, layer: int) -> Float[Tensor, "thinking head token"]:
        """α_{t,j,p}, with what a norm behind attention makes of it."""
        return self.thinking.shares(layer)[0]


def product(hops: Hops, layer: int) -> Float[Tensor, "target head token"]:
    """Σ_t α_{i,j,t} α_{t,j,p}."""
    return torch.einsum("iht,thp->ihp", hops.first(layer), hops.second(layer))


def bottleneck(readout: Readout, context: Prefill, hops: Hops) -> Float[Tensor, "target token"]:
    """The bottleneck's scores of every token, signed, summed over layers and heads."""
    total = 0.0
    for layer, folded in enumerate(readout.folded):
        scores = slot_scores(folded, readout.values(context, layer))
        total = total + (product(hops, layer) * scores).sum(dim=1)
    return total


def two_hops(
    parts: Parts, readout: Readout, context: Prefill, hops: Hops
) -> Float[Tensor, "target token"]:
    """T_p of every token, signed.

    From the last layer down: what of the residual stream at t is read, by all later layers
    together, is folded back through the layer's W_o and weighs what its heads read.
    """
    dtype = readout.vectors.dtype
    streams = _streams(hops, dtype)
    read: Tensor = torch.zeros(1, 1, 1, dtype=dtype, device=readout.vectors.device)
    total: Tensor = readout.vectors.new_zeros(len(readout.vectors), len(context.is_visible))
    for layer in reversed(range(parts.n_layers)):
        if layer < parts.n_layers - 1:
            back = fold(parts, layer, rearrange(read, "i t d -> (i t) d"))
            back = rearrange(back, "(i t) h d -> i t h d", i=len(total))
            total += _read_by(back, hops.written(layer), readout.values(context, layer))
        read = read + _read_at(parts, readout, hops, streams[layer], layer)
    return total


def _read_at(
    parts: Parts, readout: Readout, hops: Hops, stream: Tensor, layer: int
) -> Float[Tensor, "target thinking d_model"]:
    """Σ_j α_{i,j,t} (W_v N_t)ᵀ W_oᵀ u: what a layer's heads at i read of the stream at t."""
    module = parts.layers[layer]
    folded = readout.folded[layer]
    n_groups = parts.n_heads // parts.n_kv_heads
    weighted = torch.einsum("iht,ihd->ithd", hops.first(layer), folded)
    by_kv = rearrange(weighted, "i t (kv g) d -> (i t) kv g d", g=n_groups).sum(dim=2)
    back = transpose_apply(module.v_proj, rearrange(by_kv, "n kv d -> n (kv d)"))
    back = rearrange(back, "(i t) d -> i t d", i=len(folded))
    scale = torch.rsqrt(stream.square().mean(dim=-1) + parts.epsilon)
    weight = parts.weight_of(module.attention_norm).to(back.dtype)
    return back * weight * rearrange(scale, "t -> 1 t 1")


def _read_by(
    back: Float[Tensor, "target thinking head d_head"],
    weights: Float[Tensor, "thinking head token"],
    values: Float[Tensor, "1 kv_head token d_head"],
) -> Float[Tensor, "target token"]:
    """Σ_{t,j} α_{t,j,p} (W_oᵀ x)·v_p."""
    per_head = values[0].repeat_interleave(back.shape[2] // values.shape[1], dim=0)
    read = [(torch.einsum("thd,thp->hpd", one, weights) * per_head).sum(dim=(0, 2)) for one in back]
    return torch.stack(read)


def _streams(hops: Hops, dtype: torch.dtype) -> list[Float[Tensor, "thinking d_model"]]:
    """The residual stream at the thinking rows before each layer."""
    stream, before = hops.embeddings.to(dtype), []
    for attention, ffn in zip(hops.thinking.attention, hops.thinking.ffn, strict=True):
        before.append(stream)
        stream = stream + attention[0].to(dtype) + ffn[0].to(dtype)
    return before
