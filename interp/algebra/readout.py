"""From a target to the vectors that read it: gauge rows, u, and u folded back through W_o.

The linear maps of a model are read through its modules, not off their weights: a LoRA update, a
quantised or a merged weight is part of what a module does, and with the bare base weight a readout
was 18 % wrong. A plain `nn.Linear` is read directly, in float32 or better; anything else by its
vector-Jacobian product, once `check_linear` has seen that it is linear.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.algebra.ledger import readout_vectors
from interp.capture.prefill import Prefill
from interp.model.linear import (
    apply_linear,
    constant_of,
    embedding_rows,
    is_plain,
    mean_row,
    transpose_apply,
)
from interp.model.parts import Parts
from interp.vocabulary import GAUGES

RUNNER_UP = "runner-up"


@dataclass(frozen=True)
class Readout:
    """Vectors that read what is written to the residual stream in logits of the targets."""

    gauge_rows: Float[Tensor, "target d_model"]
    """g: the row of the output embedding in the chosen gauge."""
    vectors: Float[Tensor, "target d_model"]
    """u: g with the final norm frozen at the clean residual."""
    folded: list[Float[Tensor, "target head d_head"]]
    """W_oᵀ u, by layer; W_oᵀ (γ' ⊙ u) where a norm of weight γ' stands behind attention."""
    biases: list[Float[Tensor, "kv_head d_head"]]
    """b_v, by layer."""
    constants: list[Float[Tensor, " target"]]
    """u·b_o, by layer: what a bias of the output projection writes, which no head does."""

    def values(self, run: Prefill, layer: int) -> Float[Tensor, "1 kv_head token d_head"]:
        """v of every token in a layer, without the value bias."""
        bias = self.biases[layer]
        return run.values[layer].to(bias.dtype) - rearrange(bias, "kv d -> 1 kv 1 d")


def read_out(
    parts: Parts,
    gauge_rows: Float[Tensor, "target d_model"],
    final: Float[Tensor, "target d_model"],
) -> Readout:
    """The readout of targets whose clean residuals before the final norm are `final`."""
    final = final.to(gauge_rows.dtype)
    vectors = readout_vectors(gauge_rows, final, parts.norm_weight.to(final.dtype), parts.epsilon)
    folded = [fold(parts, n, vectors) for n in range(parts.n_layers)]
    return Readout(
        gauge_rows,
        vectors,
        folded,
        value_biases(parts, vectors.dtype),
        [_constant(layer.o_proj, vectors) for layer in parts.layers],
    )


def _constant(
    o_proj: nn.Module, vectors: Float[Tensor, "target d_model"]
) -> Float[Tensor, " target"]:
    """u·b_o of one layer; there is nothing to compute for a plain projection without a bias."""
    if is_plain(o_proj) and o_proj.bias is None:
        return vectors.new_zeros(len(vectors))
    return vectors @ constant_of(o_proj, vectors.dtype)


def fold(
    parts: Parts, layer: int, vectors: Float[Tensor, "target d_model"]
) -> Float[Tensor, "target head d_head"]:
    """W_oᵀ x: what a vector that reads the residual stream reads of each head's sum.

    The weight of a norm behind attention is in it; what that norm divides a row by is in
    `Replay.shares`.
    """
    post_norm = parts.layers[layer].attention_post_norm
    if post_norm:
        vectors = vectors * parts.weight_of(post_norm).detach().to(vectors.dtype)
    return fold_output(parts, layer, vectors)


def written(
    parts: Parts, layer: int, read: Float[Tensor, "*n head_d_head"]
) -> Float[Tensor, "*n d_model"]:
    """W_o x: what heads that have read x write to the residual stream, the other way of `fold`."""
    module = parts.layers[layer]
    output = apply_linear(module.o_proj, read)
    if module.attention_post_norm:
        output = output * parts.weight_of(module.attention_post_norm).detach().to(output.dtype)
    return output


def fold_output(
    parts: Parts, layer: int, vectors: Float[Tensor, "target d_model"]
) -> Float[Tensor, "target head d_head"]:
    """W_oᵀ x of a vector that reads what attention itself puts out."""
    back = transpose_apply(parts.layers[layer].o_proj, vectors)
    return rearrange(back, "t (h d) -> t h d", h=parts.n_heads)


def value_biases(parts: Parts, dtype: torch.dtype) -> list[Float[Tensor, "kv_head d_head"]]:
    """b_v by layer."""
    biases = [constant_of(layer.v_proj, dtype=dtype) for layer in parts.layers]
    return [rearrange(bias, "(kv d) -> kv d", kv=parts.n_kv_heads) for bias in biases]


def gauge_rows(
    output_embedding: nn.Module,
    targets: Int[Tensor, " target"],
    gauge: str,
    foils: Int[Tensor, " target"] | None = None,
) -> Float[Tensor, "target d_model"]:
    """g of METHODS.md 1, in float32 or better.

    Raises:
        ValueError: unknown gauge, or the contrast gauge without foils.
    """
    check_gauge(gauge, foils)
    rows = embedding_rows(output_embedding, targets)
    if gauge == "centered":
        return rows - mean_row(output_embedding)
    if gauge == "contrast":
        return rows - embedding_rows(output_embedding, foils)
    return rows


def gauge_logits(
    logits: Float[Tensor, "target vocabulary"],
    targets: Int[Tensor, " target"],
    gauge: str,
    foils: Int[Tensor, " target"] | None = None,
) -> Float[Tensor, " target"]:
    """The model's own logits of the targets in a gauge, in float32 or better."""
    check_gauge(gauge, foils)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    chosen = _pick(logits, targets)
    if gauge == "centered":
        return chosen - logits.mean(dim=-1)
    if gauge == "contrast":
        return chosen - _pick(logits, foils)
    return chosen


def runners_up(
    logits: Float[Tensor, "target vocabulary"], targets: Int[Tensor, " target"]
) -> Int[Tensor, " target"]:
    """The model's likeliest token besides each target."""
    return logits.scatter(1, rearrange(targets, "t -> t 1"), -torch.inf).argmax(dim=1)


def check_gauge(gauge: str, foils) -> None:
    """Raises ValueError for an unknown gauge or a missing foil."""
    if gauge not in GAUGES:
        raise ValueError(f"expected a gauge of {GAUGES}, got {gauge!r}")
    is_word = isinstance(foils, str)
    if (gauge == "contrast" and foils is None) or (is_word and foils != RUNNER_UP):
        raise ValueError(
            f"expected foils=[…], one token or id per target, or {RUNNER_UP!r}, in the contrast "
            f"gauge, got {f'the text {foils!r}; put it into a list' if is_word else 'none'}"
        )


def check_foils_are_read(gauge: str, foils) -> None:
    """Raises ValueError for foils in a gauge that has none: they would change nothing."""
    if gauge != "contrast" and foils is not None:
        raise ValueError(f"expected gauge='contrast' with foils=, got {gauge!r}, which has none")


def _pick(logits: Tensor, ids: Tensor) -> Tensor:
    return logits.gather(1, rearrange(ids, "t -> t 1"))[:, 0]
