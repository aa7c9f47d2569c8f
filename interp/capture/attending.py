"""Rows of attention out of queries and keys, as a model's own attention computes them."""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn


def turned(
    projected: Float[Tensor, "sequence token head_d_head"],
    norm: nn.Module | None,
    rotary: tuple[Tensor, Tensor],
) -> Float[Tensor, "sequence head token d_head"]:
    """Queries or keys by head: normed where the family norms them, then turned by their positions.

    Args:
        projected: what q_proj or k_proj put out.
        norm: of each head's vector, in front of the rotary embedding.
        rotary: cosines and sines of the tokens, (sequence, token, d_head) each.
    """
    cos, sin = (rearrange(one, "s t d -> s 1 t d") for one in rotary)
    vectors = rearrange(projected, "s t (h d) -> s h t d", d=cos.shape[-1])
    if norm is not None:
        vectors = norm(vectors)
    first, second = vectors.chunk(2, dim=-1)
    return vectors * cos + torch.cat([-second, first], dim=-1) * sin


def attention_rows(
    queries: Float[Tensor, "sequence head row d_head"],
    keys: Float[Tensor, "sequence kv_head token d_head"],
    is_seen: Bool[Tensor, "sequence row token"],
    scaling: float,
) -> Float[Tensor, "sequence row head token"]:
    """α of some rows, in float32 or better; query head j reads key head j // (H / H_kv)."""
    dtype = torch.promote_types(queries.dtype, torch.float32)
    n_kv_heads, n_rows = keys.shape[1], queries.shape[2]
    grouped = rearrange(queries.to(dtype) * scaling, "s (kv g) r d -> s kv (g r) d", kv=n_kv_heads)
    scores = grouped @ keys.to(dtype).mT
    scores = rearrange(scores, "s kv (g r) t -> s r (kv g) t", r=n_rows)
    return scores.masked_fill(~rearrange(is_seen, "s r t -> s r 1 t"), -torch.inf).softmax(dim=-1)
