"""Edge effects: what a target loses when its row cannot read a source set (METHODS.md 3.1).

In the second run (variant k of one replay; tilde) what row i reads from S over the edges i ← p is
removed in every layer; all other positions stay clean.

    total = f − f̃ = direct + value_bias + ffn + attention + norm

Each part has its own formula, so that their sum is a test. For the mode "zero", in which the values
are left out without renormalising:

    direct      Σ_{l,j,p∈S} α u·W_o v_p
    value_bias  Σ_{l,j,p∈S} α u·W_o b_v
    ffn         Σ_l u·(F − F̃)
    attention   Σ_{l,j} Σ_{q<i,q∉S} (α − α̃) u·W_o (v_q + b_v) + the same difference at the own row
    norm        (u − ũ)·h̃

"mean" reads a mean value v̂ (its bias in it) over the cut edges: direct becomes Σ α u·W_o (v_p + b_v
− v̂), value_bias 0, and attention gains Σ_S (α − α̃) u·W_o v̂. "mask" takes the edges out of the
softmax too: the bias cancels in Σα = Σα̃, so value_bias is 0 and attention is without b_v.
"""

from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.algebra.ledger import bias_scores, own_scores, project, readout_vectors, slot_scores
from interp.algebra.readout import Readout
from interp.capture.prefill import Prefill
from interp.capture.replay import Replay
from interp.capture.slots import Variants
from interp.model.parts import Parts


@dataclass(frozen=True)
class EdgeEffects:
    """The split of the total effect of K cuts on T targets, by `interp.vocabulary.LAYER_PATHS`."""

    total: Float[Tensor, "target source_set"]
    by_layer: Float[Tensor, "target source_set layer_path layer"]
    norm: Float[Tensor, "target source_set"]


def cut_masks(
    sets: Bool[Tensor, "source_set token"], rows: Int[Tensor, " target"], is_visible: Tensor
) -> Bool[Tensor, "source_set target token"]:
    """S ∩ {p < i} for each set and target, padding left out."""
    tokens = torch.arange(sets.shape[1], device=sets.device)
    before = (tokens < rearrange(rows, "t -> t 1")) & is_visible
    return rearrange(sets, "s p -> s 1 p") & before


def mean_values(
    context: Prefill, is_averaged: Bool[Tensor, "source_set token"]
) -> list[Float[Tensor, "source_set kv_head d_head"]]:
    """v̂ by layer: the mean over some rows of the cached values, their bias in it."""
    means = []
    for cached in context.values:
        values = cached[0].to(torch.promote_types(cached.dtype, torch.float32))
        share = is_averaged / is_averaged.sum(dim=1, keepdim=True)
        means.append(torch.einsum("sp,kpd->skd", share.to(values), values))
    return means


def edge_effects(
    parts: Parts,
    readout: Readout,
    context: Prefill,
    played: Replay,
    rows: Int[Tensor, " target"],
    variants: Variants,
) -> EdgeEffects:
    """The effect ledger of each cut; `played` and `variants` have the clean variant first."""
    total, norm = clean_against(parts, readout, played)
    layers = [_layer(readout, context, played, rows, variants, n) for n in range(parts.n_layers)]
    by_layer = rearrange(torch.stack(layers), "l path s t -> t s path l")
    return EdgeEffects(rearrange(total, "s t -> t s"), by_layer, rearrange(norm, "s t -> t s"))


def clean_against(
    parts: Parts, readout: Readout, played: Replay
) -> tuple[Float[Tensor, "variant target"], Float[Tensor, "variant target"]]:
    """f − f̃ and (u − ũ)·h̃ of every variant behind the first, which is the clean one."""
    final = played.final.to(readout.vectors.dtype)
    gauge_rows = repeat(readout.gauge_rows, "t d -> v t d", v=len(final) - 1)
    second = readout_vectors(
        gauge_rows, final[1:], parts.norm_weight.to(final.dtype), parts.epsilon
    )
    total = project(readout.vectors, final[0]) - project(second, final[1:])
    return total, project(readout.vectors - second, final[1:])


def _layer(
    readout: Readout,
    context: Prefill,
    played: Replay,
    rows: Int[Tensor, " target"],
    variants: Variants,
    layer: int,
) -> Float[Tensor, "layer_path source_set target"]:
    """direct, value_bias, ffn and attention of one layer."""
    folded, bias = readout.folded[layer], readout.biases[layer]
    constant = bias_scores(folded, bias)
    scores = slot_scores(folded, readout.values(context, layer))
    own = own_scores(folded, played.own_values[layer].to(folded.dtype) - bias)
    weights = played.shares(layer)
    clean, second = weights[0], weights[1:]
    is_cut = variants.is_cut[1:].to(folded.dtype)
    direct = torch.einsum("thp,thp,stp->st", clean, scores, is_cut)
    value_bias = torch.einsum("thp,th,stp->st", clean, constant, is_cut)
    if variants.is_masked:
        constant, value_bias = torch.zeros_like(constant), torch.zeros_like(value_bias)
    ffn = project(readout.vectors, (played.ffn[layer][0] - played.ffn[layer][1:]).to(folded.dtype))
    # Before the row: the same slots under both patterns. At the row: pattern and value both differ.
    is_own = torch.zeros_like(scores[:, 0]).scatter(1, rearrange(rows, "t -> t 1"), 1.0)
    elsewhere = (1 - is_cut) * (1 - is_own)
    with_bias = scores + rearrange(constant, "t h -> t h 1")
    changed = ((clean - second) * with_bias).sum(dim=2)
    attention = (changed * elsewhere).sum(dim=-1)
    own_weight = torch.einsum("vthp,tp->vth", weights, is_own)
    own_write = (own_weight * (own + constant)).sum(dim=-1)
    attention = attention + own_write[0] - own_write[1:]
    if variants.fill is not None:
        filled = _fill_scores(folded, variants.fill[layer][1:].to(folded.dtype))
        direct = direct + value_bias - torch.einsum("thp,sth,stp->st", clean, filled, is_cut)
        value_bias = torch.zeros_like(value_bias)
        attention = attention + torch.einsum("sthp,sth,stp->st", clean - second, filled, is_cut)
    return torch.stack([direct, value_bias, ffn, attention])


def _fill_scores(
    folded: Float[Tensor, "target head d_head"], fill: Float[Tensor, "source_set kv_head d_head"]
) -> Float[Tensor, "source_set target head"]:
    """u·W_o v̂ of each set."""
    per_head = fill.repeat_interleave(folded.shape[1] // fill.shape[1], dim=1)
    return torch.einsum("thd,shd->sth", folded, per_head)
