"""Checks that what a replay captured is all that there is: finite, and summing to the stream."""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.capture.prefill import Prefill
from interp.model.parts import Parts
from interp.vocabulary import BOUNDS


def check_rows(parts: Parts, pairs: list[tuple[Prefill, Int[Tensor, " _"]]]) -> None:
    """Raises ValueError for rows that read what follows them: a replayed row never does."""
    for context, rows in pairs:
        types = context.given.get(parts.ahead)
        if types is not None and bool(types[0, rows].any()):
            raise ValueError(
                "expected positions of text, got some of an image whose tokens see those that "
                "follow them, which no replayed row does; name positions outside of images"
            )


def check_finite(
    attention: list[Float[Tensor, "*rows d_model"]],
    ffn: list[Float[Tensor, "*rows d_model"]],
    final: Float[Tensor, "*rows d_model"],
) -> None:
    """Raises ValueError for NaN or infinity, naming the first layer that has it."""
    if final.isfinite().all():
        return
    for layer, pair in enumerate(zip(attention, ffn, strict=True)):
        for name, value in zip(("attention", "FFN"), pair, strict=True):
            if not value.isfinite().all():
                raise ValueError(
                    f"expected finite activations, got NaN or infinity in the {name} output of "
                    f"layer {layer}; check the weights, or use float32 or bfloat16"
                )
    raise ValueError("expected finite activations, got NaN or infinity in the content (1.1)")


@torch.no_grad()
def check_stream(
    written: list[Float[Tensor, "*rows d_model"]], final: Float[Tensor, "*rows d_model"]
) -> None:
    """Raises ValueError unless content, attention and FFNs are all that is in the stream.

    Each row's largest gap, relative to the sum of its parts' largest entries: a hook that steers a
    layer, say, writes what no part has.
    """
    dtype = torch.promote_types(final.dtype, torch.float32)
    total, scale = 0.0, 0.0
    for one in written:
        total = total + one.to(dtype)
        scale = scale + one.abs().amax(dim=-1).to(dtype)
    error = float(((total - final.to(dtype)).abs().amax(dim=-1) / scale).max())
    _check_bound(error, final.dtype, "a residual stream of content, attention and FFN outputs")


@torch.no_grad()
def check_post_norms(
    parts: Parts,
    scales: list[Float[Tensor, "*rows"]],
    outputs: Iterable[Float[Tensor, "*rows d_model"]],
    written: list[Float[Tensor, "*rows d_model"]],
) -> None:
    """Raises ValueError unless norms behind attention have written what their inputs give.

    Each row's largest gap, relative to its largest entry.
    """
    for layer, (scale, whole, attention) in enumerate(zip(scales, outputs, written, strict=False)):
        gamma = parts.weight_of(parts.layers[layer].attention_post_norm).to(scale.dtype)
        gap = attention.to(scale.dtype) - gamma * whole.to(scale.dtype) * scale[..., None]
        largest = attention.abs().amax(dim=-1).clamp(min=torch.finfo(attention.dtype).tiny)
        error = float((gap.abs().amax(dim=-1) / largest).max())
        _check_bound(
            error, attention.dtype, f"outputs of the norm behind attention in layer {layer}"
        )


def _check_bound(error: float, dtype: torch.dtype, expected: str) -> None:
    bound = BOUNDS[str(dtype).removeprefix("torch.")]
    if not error <= bound:
        raise ValueError(
            f"expected {expected}, got one that differs by {error:.2g} of them (bound {bound:g}); "
            "is a layer changed by hooks?"
        )
