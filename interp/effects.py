"""Edge effects: what a target loses when its row cannot read a source set (METHODS.md 3.1).

The second run (variant k of one replay; tilde) leaves out, at row i and in every layer, the values
that row i reads from S over the edges i ← p, without renormalising; all other positions stay clean.

    total = f − f̃ = direct + value_bias + ffn + attention + norm

Each part has its own formula, so that their sum is a test:

    direct      Σ_{l,j,p∈S} α u·W_o v_p
    value_bias  Σ_{l,j,p∈S} α u·W_o b_v
    ffn         Σ_l u·(F − F̃)
    attention   Σ_{l,j} Σ_{q<i,q∉S} (α − α̃) u·W_o (v_q + b_v) + the same difference at the own row
    norm        (u − ũ)·h̃
"""

from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.capture import Prefill, Replay
from interp.ledger import (
    bias_scores,
    own_scores,
    project,
    readout_vectors,
    slot_scores,
    with_own_row,
)
from interp.model import Parts
from interp.readout import Readout


@dataclass(frozen=True)
class EdgeEffects:
    """The split of the total effect of K cuts on T targets; `paths` as `labels.LAYER_PATHS`."""

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


def edge_effects(
    where: Parts,
    readout: Readout,
    context: Prefill,
    played: Replay,
    rows: Int[Tensor, " target"],
    cuts: Bool[Tensor, "source_set target token"],
) -> EdgeEffects:
    """The effect ledger of each cut; `played` has the clean variant first, then the cuts."""
    dtype = readout.vectors.dtype
    final = played.final.to(dtype)
    gauge_rows = repeat(readout.gauge_rows, "t d -> s t d", s=len(cuts))
    norm_weight = where.norm_weight.to(dtype)
    second = readout_vectors(gauge_rows, final[1:], norm_weight, where.epsilon)
    clean_logit = project(readout.vectors, final[0])
    total = clean_logit - project(second, final[1:])
    norm = project(readout.vectors - second, final[1:])
    layers = [_layer(readout, context, played, rows, cuts, n) for n in range(where.n_layers)]
    by_layer = rearrange(torch.stack(layers), "l path s t -> t s path l")
    return EdgeEffects(rearrange(total, "s t -> t s"), by_layer, rearrange(norm, "s t -> t s"))


def _layer(
    readout: Readout,
    context: Prefill,
    played: Replay,
    rows: Int[Tensor, " target"],
    cuts: Bool[Tensor, "source_set target token"],
    layer: int,
) -> Float[Tensor, "layer_path source_set target"]:
    """direct, value_bias, ffn and attention of one layer."""
    folded, bias = readout.folded[layer], readout.biases[layer]
    constant = bias_scores(folded, bias)
    slots = context.values[layer].to(folded.dtype) - rearrange(bias, "kv d -> 1 kv 1 d")
    scores = slot_scores(folded, slots)
    own = own_scores(folded, played.own_values[layer].to(folded.dtype) - bias)
    weights = played.weights[layer]
    clean, second = weights[0], weights[1:]
    is_cut = cuts.to(folded.dtype)
    direct = torch.einsum("thp,thp,stp->st", clean, with_own_row(scores, own[0], rows), is_cut)
    value_bias = torch.einsum("thp,th,stp->st", clean, constant, is_cut)
    ffn = project(readout.vectors, (played.ffn[layer][0] - played.ffn[layer][1:]).to(folded.dtype))
    # Before the row: the same slots under both patterns. At the row: pattern and value both differ.
    is_own = torch.zeros_like(scores[:, 0]).scatter(1, rearrange(rows, "t -> t 1"), 1.0)
    elsewhere = (1 - is_cut) * (1 - is_own)
    with_bias = scores + rearrange(constant, "t h -> t h 1")
    attention = torch.einsum("sthp,thp,stp->st", clean - second, with_bias, elsewhere)
    own_weight = torch.einsum("vthp,tp->vth", weights, is_own)
    own_write = (own_weight * (own + constant)).sum(dim=-1)
    return torch.stack([direct, value_bias, ffn, attention + own_write[0] - own_write[1:]])
