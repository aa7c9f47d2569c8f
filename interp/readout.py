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

from interp.labels import GAUGES
from interp.ledger import readout_vectors
from interp.model import Parts

RUNNER_UP = "runner-up"
_MEAN_ROW = "_interp_mean_row"


@dataclass(frozen=True)
class Readout:
    """What the algebra needs to turn written vectors into logits of the targets."""

    gauge_rows: Float[Tensor, "target d_model"]
    """g: the row of the output embedding in the chosen gauge."""
    vectors: Float[Tensor, "target d_model"]
    """u: g with the final norm frozen at the clean residual."""
    folded: list[Float[Tensor, "target head d_head"]]
    """W_oᵀ u, by layer."""
    biases: list[Float[Tensor, "kv_head d_head"]]
    """b_v, by layer."""


def read_out(
    where: Parts,
    gauge_rows: Float[Tensor, "target d_model"],
    final: Float[Tensor, "target d_model"],
) -> Readout:
    """The readout of targets whose clean residuals before the final norm are `final`."""
    final = final.to(gauge_rows.dtype)
    vectors = readout_vectors(gauge_rows, final, where.norm_weight.to(final.dtype), where.epsilon)
    folded = [fold(where, n, vectors) for n in range(where.n_layers)]
    return Readout(gauge_rows, vectors, folded, value_biases(where, vectors.dtype))


def fold(
    where: Parts, layer: int, vectors: Float[Tensor, "target d_model"]
) -> Float[Tensor, "target head d_head"]:
    """W_oᵀ x: what a vector that reads the residual stream reads of each head's sum."""
    back = transpose_apply(where.language_model.layers[layer].self_attn.o_proj, vectors)
    return rearrange(back, "t (h d) -> t h d", h=where.n_heads)


def value_biases(where: Parts, dtype: torch.dtype) -> list[Float[Tensor, "kv_head d_head"]]:
    """b_v by layer."""
    biases = [
        constant_of(layer.self_attn.v_proj, dtype=dtype) for layer in where.language_model.layers
    ]
    return [rearrange(bias, "(kv d) -> kv d", kv=where.n_kv_heads) for bias in biases]


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
            f"expected foils=[…], one token id per target, or {RUNNER_UP!r}, in the contrast "
            f"gauge, got {foils if is_word else 'none'}"
        )


def _pick(logits: Tensor, ids: Tensor) -> Tensor:
    return logits.gather(1, rearrange(ids, "t -> t 1"))[:, 0]


# ------------------------------------------------------------------------- modules as linear maps


def is_plain(module: nn.Module) -> bool:
    """Whether the module is exactly a linear layer, so that its weight is all it does."""
    return type(module) is nn.Linear and not module._forward_hooks


def transpose_apply(module: nn.Module, cotangent: Float[Tensor, "n out"]) -> Float[Tensor, "n in"]:
    """Wᵀ x for each row x, W being the linear map of the module."""
    if is_plain(module):
        return cotangent @ module.weight.detach().to(cotangent.dtype)
    parameter = next(module.parameters())
    with torch.enable_grad():
        at = torch.zeros(
            len(cotangent), module.in_features, dtype=parameter.dtype, device=parameter.device
        ).requires_grad_()
        (back,) = torch.autograd.grad(module(at), at, cotangent.to(parameter.dtype))
    return back.to(cotangent.dtype)


def apply_linear(module: nn.Module, x: Float[Tensor, "*n in"]) -> Float[Tensor, "*n out"]:
    """W x, W being the linear map of the module; its bias is left out."""
    if is_plain(module):
        return x @ module.weight.detach().to(x.dtype).T
    parameter = next(module.parameters())
    with torch.no_grad():
        return module(x.to(parameter.dtype)).to(x.dtype) - constant_of(module, x.dtype)


def constant_of(module: nn.Module, dtype: torch.dtype) -> Float[Tensor, " out"]:
    """The module's output at zero: its bias."""
    parameter = next(module.parameters())
    zero = torch.zeros(1, module.in_features, dtype=parameter.dtype, device=parameter.device)
    with torch.no_grad():
        return module(zero)[0].to(dtype)


def embedding_rows(module: nn.Module, ids: Int[Tensor, " n"]) -> Float[Tensor, "n d_model"]:
    """Rows of the output embedding, as the module gives them."""
    dtype = torch.promote_types(next(module.parameters()).dtype, torch.float32)
    if is_plain(module):
        return module.weight.detach()[ids].to(dtype)
    one_hot = torch.zeros(len(ids), module.out_features, dtype=dtype, device=ids.device)
    return transpose_apply(module, one_hot.scatter(1, rearrange(ids, "n -> n 1"), 1.0))


def mean_row(module: nn.Module) -> Float[Tensor, " d_model"]:
    """Mean over all rows of the output embedding, padding rows included."""
    dtype = torch.promote_types(next(module.parameters()).dtype, torch.float32)
    if is_plain(module):
        # Reading the whole output embedding costs as much as a small replay: kept until it changes.
        state, known = _state(module.weight), module.__dict__.get(_MEAN_ROW)
        if known is None or known[0] != state:
            known = (state, module.weight.detach().mean(dim=0, dtype=dtype))
            module.__dict__[_MEAN_ROW] = known
        return known[1]
    n_rows = module.out_features
    uniform = torch.full(
        (1, n_rows), 1 / n_rows, dtype=dtype, device=next(module.parameters()).device
    )
    return transpose_apply(module, uniform)[0]


def _state(weight: Tensor) -> tuple:
    """What tells that a weight was changed.

    Where it is, how often it was written to, and some of its values, because a write through
    `.data` is not counted.
    """
    flat = weight.detach().reshape(-1)
    some = flat[:: max(1, len(flat) // 1024)].float().cpu().numpy().tobytes()
    n_writes = 0 if weight.is_inference() else weight._version
    return weight.data_ptr(), tuple(weight.shape), weight.dtype, n_writes, some


def check_linear(module: nn.Module, name: str) -> None:
    """Raises ValueError unless the module is affine, which folding and the value bias stand on."""
    if is_plain(module):
        return
    parameter = next(module.parameters())
    generator = torch.Generator().manual_seed(0)
    pair = torch.randn(2, module.in_features, generator=generator).to(parameter)
    points = torch.stack([pair[0] + pair[1], pair[0], pair[1], torch.zeros_like(pair[0])])
    with torch.no_grad():
        both, one, other, zero = module(points).double()
    scale = one.abs().max() + other.abs().max() + 1e-12
    limit = 1e-4 if parameter.dtype in (torch.float32, torch.float64) else 5e-2
    if (both - one - other + zero).abs().max() > limit * scale:
        raise ValueError(
            f"expected a linear adapter, got a non-linear {type(module).__name__} at {name}; "
            "merge it or use LoRA"
        )
