"""The released code's reading of a contribution, where it departs from Eq. 1 (docs/MAPS.md)."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from interp.algebra.readout import written as write_of_heads
from interp.capture.prefill import Prefill
from interp.model.parts import Parts


def as_released(
    parts: Parts,
    gauge_rows: Float[Tensor, "target d_model"],
    final: Float[Tensor, "target d_model"],
    written: Float[Tensor, "target source d_model"],
) -> Float[Tensor, "target source"]:
    """The released code's reading of vectors written from each source: g·norm(w)‖w‖ / ‖h‖.

    h is the target's state before the final norm. Because of the norm's ε this is linear in w only
    where ‖w‖ ≫ √(dε), and so makes small contributions smaller.
    """
    final = final.to(gauge_rows.dtype)
    length = torch.linalg.vector_norm(written, dim=-1)
    scale = torch.rsqrt(written.square().mean(dim=-1) + parts.epsilon)
    read = written @ rearrange(gauge_rows * parts.norm_weight.to(final.dtype), "i d -> i d 1")
    final_length = rearrange(torch.linalg.vector_norm(final, dim=-1), "i -> i 1")
    return rearrange(read, "i p 1 -> i p") * scale * length / final_length


def released_writes(
    parts: Parts,
    context: Prefill,
    weights: list[Float[Tensor, "target head source"]],
    sources: Tensor,
    dtype: torch.dtype,
) -> Float[Tensor, "target source d_model"]:
    """Σ_{l,j} weight W_o v_p of some tokens, the value bias in v; by layer weights of any kind."""
    total = 0.0
    for layer in range(parts.n_layers):
        values = context.values[layer][0][:, sources].to(dtype)
        values = values.repeat_interleave(parts.n_heads // parts.n_kv_heads, dim=0)
        read = torch.einsum("ihp,hpd->iphd", weights[layer].to(dtype), values)
        total = total + write_of_heads(parts, layer, rearrange(read, "i p h d -> i p (h d)"))
    return total
