"""The algebra of the ledger: one logit as a sum of what wrote it (METHODS.md 1 and 2).

Pure tensor algebra: no model, no labels, no input or output. Axes:

    layer target head source     the parts of a direct term
    d_model, d_head              the vectors they come from

    f = u·h = embed + Σ_l ffn_l + Σ_{l,j} value_bias_{l,j} + Σ_{l,j,p} direct_{l,j,p}

Nothing of width d_model is formed per source: the readout u is folded back through W_o first
(`folded`, one vector of width d_head per layer, target and head), and then meets the cached values.
"""

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor


def readout_vectors(
    gauge_rows: Float[Tensor, "*rows target d_model"],
    final_residual: Float[Tensor, "*rows target d_model"],
    norm_weight: Float[Tensor, " d_model"],
    epsilon: float,
) -> Float[Tensor, "*rows target d_model"]:
    """u = γ ⊙ g / rms_ε(h): the readout with a frozen final norm, so f = u·h (METHODS.md 1)."""
    mean_square = final_residual.square().mean(dim=-1, keepdim=True)
    return gauge_rows * norm_weight * torch.rsqrt(mean_square + epsilon)


def project(
    readout: Float[Tensor, "... target d_model"], written: Float[Tensor, "... target d_model"]
) -> Float[Tensor, "... target"]:
    """u·x for each target: what a vector written to the residual stream adds to the logit."""
    return (readout * written).sum(dim=-1)


def slot_scores(
    folded: Float[Tensor, "target head d_head"],
    values: Float[Tensor, "#target kv_head source d_head"],
) -> Float[Tensor, "target head source"]:
    """s = (W_oᵀ u)·v for each head and source: a direct term before its attention weight.

    Query head j reads key/value head j // (n_heads / n_kv_heads). `values` has target length 1
    where all targets read the same slots.
    """
    groups = rearrange(folded, "t (kv g) d -> t kv g d", kv=values.shape[1])
    scores = groups @ values.transpose(-1, -2)  # (target, kv, group, source), no copy per head
    return rearrange(scores, "t kv g p -> t (kv g) p")


def bias_scores(
    folded: Float[Tensor, "target head d_head"], bias: Float[Tensor, "kv_head d_head"]
) -> Float[Tensor, "target head"]:
    """(W_oᵀ u)·b_v for each head: the value bias's term, since Σ_p α = 1."""
    per_head = bias.repeat_interleave(folded.shape[1] // bias.shape[0], dim=0)
    return torch.einsum("thd,hd->th", folded, per_head)


def own_scores(
    folded: Float[Tensor, "target head d_head"],
    own_values: Float[Tensor, "variant target kv_head d_head"],
) -> Float[Tensor, "variant target head"]:
    """s of each row's own value, in every variant of a replay."""
    groups = rearrange(folded, "t (kv g) d -> t kv g d", kv=own_values.shape[2])
    return rearrange(torch.einsum("tkgd,vtkd->vtkg", groups, own_values), "v t kv g -> v t (kv g)")


def with_own_row(
    scores: Float[Tensor, "target head source"],
    own: Float[Tensor, "target head"],
    rows: Int[Tensor, " target"],
) -> Float[Tensor, "target head source"]:
    """Scores whose entry at the target's own row comes from the row's own value."""
    index = repeat(rows, "t -> t h 1", h=scores.shape[1])
    return scores.scatter(2, index, rearrange(own, "t h -> t h 1"))


def direct_terms(
    folded: Float[Tensor, "target head d_head"],
    values: Float[Tensor, "1 kv_head source d_head"],
    own_values: Float[Tensor, "target kv_head d_head"],
    weights: Float[Tensor, "target head source"],
    rows: Int[Tensor, " target"],
) -> Float[Tensor, "target head source"]:
    """α u·W_o v for each head and source of one layer: Eq. 1 term by term (METHODS.md 2).

    Args:
        folded: W_oᵀ u.
        values: v of all slots, without the bias.
        own_values: v of each target's own row, without the bias.
        weights: attention rows, 0 on what a row cannot see.
        rows: each target's own position.
    """
    own = own_scores(folded, rearrange(own_values, "t kv d -> 1 t kv d"))[0]
    return weights * with_own_row(slot_scores(folded, values), own, rows)
