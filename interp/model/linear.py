"""The linear maps of a model, read through its modules and not off their weights.

A LoRA update, a quantised or a merged weight is part of what a module does; with the bare base
weight a readout was 18 % wrong. A plain `nn.Linear` is read directly, in float32 or better;
anything else by its vector-Jacobian product, once `check_linear` has seen that it is linear.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

_MEAN_ROW = "_interp_mean_row"
BLOCK = 8192  # rows that are summed in float32


def is_plain(module: nn.Module) -> bool:
    """Whether the module is exactly a linear layer, so that its weight is all it does.

    Tracing puts a forward of its own in the module's place, which keeps the one it runs as
    `state.original`: a traced linear layer is a linear layer still.
    """
    if type(module) is not nn.Linear or module._forward_hooks or module._forward_pre_hooks:
        return False
    forward = vars(module).get("forward")
    runs = getattr(getattr(forward, "state", None), "original", forward)
    return (runs is None or runs is nn.Linear.forward) and "_hf_hook" not in vars(module)


def sizes(module: nn.Module) -> tuple[int, int]:
    """(in, out) features of a linear module, or of the one that a wrapper holds.

    Raises:
        ValueError: a module that neither says its features nor holds one that does.
    """
    for inner in module.modules():
        if hasattr(inner, "out_features"):
            return inner.in_features, inner.out_features
    raise ValueError(
        f"expected a linear module with in_features and out_features, got {type(module).__name__}"
    )


def float_dtype(module: nn.Module) -> torch.dtype:
    """The dtype in which a module computes; its weights may be stored as whole numbers."""
    tensors = (*module.parameters(), *module.buffers())
    return next((one.dtype for one in tensors if one.is_floating_point()), torch.float32)


def transpose_apply(module: nn.Module, cotangent: Float[Tensor, "n out"]) -> Float[Tensor, "n in"]:
    """Wᵀ x for each row x, W being the linear map of the module."""
    if is_plain(module):
        return cotangent @ module.weight.detach().to(cotangent.dtype)
    dtype, device = float_dtype(module), next(module.parameters()).device
    with torch.enable_grad():
        at = torch.zeros(len(cotangent), sizes(module)[0], dtype=dtype, device=device)
        (back,) = torch.autograd.grad(module(at.requires_grad_()), at, cotangent.to(dtype))
    return back.to(cotangent.dtype)


@contextmanager
def _in_eval_mode(module: nn.Module) -> Iterator[None]:
    """An adapter's dropout would draw one map forward and another one backward."""
    training = [one for one in module.modules() if one.training]
    for one in training:
        one.training = False
    try:
        yield
    finally:
        for one in training:
            one.training = True


class _Transposed(torch.autograd.Function):
    """Wᵀ x as a function of x alone: W is a constant, whatever trains it."""

    @staticmethod
    def forward(x, module):
        with _in_eval_mode(module):
            return transpose_apply(module, x)

    @staticmethod
    def setup_context(context, inputs, output):
        context.module = inputs[1]

    @staticmethod
    def backward(context, gradient):
        with _in_eval_mode(context.module):
            return apply_linear(context.module, gradient), None


def transposed(module: nn.Module, x: Float[Tensor, "n out"]) -> Float[Tensor, "n in"]:
    """`transpose_apply` with gradients for x and none for the module's weights."""
    return _Transposed.apply(x, module)


def apply_linear(module: nn.Module, x: Float[Tensor, "*n in"]) -> Float[Tensor, "*n out"]:
    """W x, W being the linear map of the module; its bias is left out."""
    if is_plain(module):
        return x @ module.weight.detach().to(x.dtype).T
    with torch.no_grad():
        return module(x.to(float_dtype(module))).to(x.dtype) - constant_of(module, x.dtype)


def constant_of(module: nn.Module, dtype: torch.dtype) -> Float[Tensor, " out"]:
    """The module's output at zero: its bias."""
    if is_plain(module):
        weight, bias = module.weight.detach(), module.bias
        return (
            weight.new_zeros(len(weight), dtype=dtype) if bias is None else bias.detach().to(dtype)
        )
    device = next(module.parameters()).device
    zero = torch.zeros(1, sizes(module)[0], dtype=float_dtype(module), device=device)
    with torch.no_grad():
        return module(zero)[0].to(dtype)


def embedding_rows(module: nn.Module, ids: Int[Tensor, " n"]) -> Float[Tensor, "n d_model"]:
    """Rows of the output embedding, as the module gives them."""
    dtype = torch.promote_types(float_dtype(module), torch.float32)
    if is_plain(module):
        return module.weight.detach()[ids].to(dtype)
    one_hot = torch.zeros(len(ids), sizes(module)[1], dtype=dtype, device=ids.device)
    return transpose_apply(module, one_hot.scatter(1, rearrange(ids, "n -> n 1"), 1.0))


def mean_row(module: nn.Module) -> Float[Tensor, " d_model"]:
    """Mean over all rows of the output embedding, padding rows included.

    Summed in blocks of rows: one float32 sum over 151,936 rows that share a mean is off by 4e-5,
    and a weight in half precision would be copied whole.
    """
    dtype = torch.promote_types(float_dtype(module), torch.float32)
    if is_plain(module):
        # Reading the whole output embedding costs as much as a small replay: kept until it changes.
        state, known = _state(module.weight), module.__dict__.get(_MEAN_ROW)
        if known is None or known[0] != state:
            blocks = module.weight.detach().split(BLOCK)
            total = sum(block.to(dtype).sum(dim=0).double() for block in blocks)
            known = (state, (total / module.out_features).to(dtype))
            module.__dict__[_MEAN_ROW] = known
        return known[1]
    n_rows, device = sizes(module)[1], next(module.parameters()).device
    rows = torch.arange(n_rows, device=device)
    choice = torch.zeros(-(-n_rows // BLOCK), n_rows, dtype=dtype, device=device)
    choice[rows // BLOCK, rows] = 1
    return (transpose_apply(module, choice).double().sum(dim=0) / n_rows).to(dtype)


def _state(weight: Tensor) -> tuple:
    """Fingerprint of a weight, which tells that it was changed.

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
    dtype, device = float_dtype(module), next(module.parameters()).device
    generator = torch.Generator().manual_seed(0)
    pair = torch.randn(2, sizes(module)[0], generator=generator).to(device, dtype)
    points = torch.stack([pair[0] + pair[1], pair[0], pair[1], torch.zeros_like(pair[0])])
    with torch.no_grad():
        at_sum, at_first, at_second, at_zero = module(points).double()
    scale = at_first.abs().max() + at_second.abs().max() + 1e-12
    limit = 1e-4 if dtype in (torch.float32, torch.float64) else 5e-2
    if (at_sum - at_first - at_second + at_zero).abs().max() > limit * scale:
        raise ValueError(
            f"expected a linear adapter, got a non-linear {type(module).__name__} at {name}; "
            "merge it or use LoRA"
        )


def has_constant(module: nn.Module) -> bool:
    """Whether the module's output at zero is anything but zero."""
    if is_plain(module):
        return module.bias is not None and bool(module.bias.detach().any())
    return bool(constant_of(module, torch.float32).any())
