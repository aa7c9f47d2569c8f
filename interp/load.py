"""Load a model and see that the capture reads it."""

import torch
from torch import nn

from interp import weights
from interp.capture import Replay, replay
from interp.model import VLM, Parts, parts
from interp.prefill import Prefill, prefill


def load_model(
    name: str,
    *,
    adapter: str | None = None,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    attn_implementation: str = "sdpa",
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    prompt: str | None = None,
) -> VLM:
    """A vision-language model with its processor, in eval mode and self-checked.

    Args:
        name: embedded name ("tiny"), hub id, or folder of a checkpoint in safetensors; or of an
            adapter that `train.grpo` made, which names its base: both are loaded.
        adapter: embedded name, folder or hub id of a peft adapter to put on it.
        revision: of the hub id.
        dtype: "auto" (the checkpoint's), "float32", "bfloat16" or "float64".
        device: a GPU where there is one, by default.
        attn_implementation: "sdpa", "eager" or "flash_attention_2"; extraction works with each.
        min_pixels, max_pixels: bounds between which the image processor resizes.
        prompt: "think", the system prompt of Saliency-R1, or "plain", the chat template's own;
            default "plain" for embedded models, which think unasked, and "think" otherwise.

    Raises:
        ValueError: unknown architecture or prompt, weights not in safetensors, sliding-window
            layers, a non-linear adapter, one that was trained on other weights, or a failed
            self-check.
    """
    vlm = weights.load(
        name,
        adapter=adapter,
        revision=revision,
        dtype=dtype,
        device=device,
        attn_implementation=attn_implementation,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        prompt=prompt,
    )
    self_check(vlm.model)
    return vlm


def self_check(model: nn.Module) -> None:
    """Proves on a short text that replays read the live tensors of this very model.

    The attention rows have the right shape and sum to 1; the replay gives the prefill's logits; and
    every layer's cached values move the result (by their gradient, which is nowhere all zero).

    Raises:
        ValueError: a check failed, naming it; or an adapter that is not linear.
    """
    where = parts(model)
    device = next(model.parameters()).device
    ids = torch.tensor([[i for i in range(20, 30) if i != where.image_token_id][:8]], device=device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    rows = torch.tensor([3, 7], device=device)
    context = prefill(model, batch, rows)
    for values in context.values:
        values.requires_grad_()
    with torch.enable_grad():
        played = replay(model, context, rows)
        moved = torch.autograd.grad(played.final.float().square().sum(), context.values)
    _check_rows(where, played, n_tokens=ids.shape[1])
    _check_drift(where, context, played)
    dead = [layer for layer, gradient in enumerate(moved) if not gradient.abs().sum() > 0]
    if dead:
        raise ValueError(
            f"self-check: expected cached values to move the result, not in layers {dead}"
        )


def _check_rows(where: Parts, played: Replay, n_tokens: int) -> None:
    expected = (1, 2, where.n_heads, n_tokens)
    for layer, rows in enumerate(played.weights):
        if tuple(rows.shape) != expected or (rows.sum(-1) - 1).abs().max() > 1e-5:
            raise ValueError(
                f"self-check: expected attention rows {expected} summing to 1 in layer {layer}, "
                f"got {tuple(rows.shape)} and sums {rows.sum(-1).flatten().tolist()}"
            )


def _check_drift(where: Parts, context: Prefill, played: Replay) -> None:
    with torch.no_grad():
        again = where.output_embedding(where.language_model.norm(played.final[0]))
    drift = (again - context.logits).float().norm() / context.logits.float().norm()
    limit = 1e-4 if again.dtype in (torch.float32, torch.float64) else 5e-2
    if not drift <= limit:
        raise ValueError(
            f"self-check: expected the replay to give the prefill's logits to {limit}, got a "
            f"relative difference of {float(drift):.2g}; is the model changed by hooks of its own?"
        )
