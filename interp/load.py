"""Load a model and see that the capture reads it."""

import torch

from interp import capture, model
from interp.model import VLM


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
        name: embedded name ("tiny"), hub id, or folder of a checkpoint in safetensors.
        adapter: folder or hub id of a peft adapter to put on it.
        revision: of the hub id.
        dtype: "auto" (the checkpoint's), "float32", "bfloat16" or "float64".
        device: a GPU where there is one, by default.
        attn_implementation: "sdpa", "eager" or "flash_attention_2"; extraction works with each.
        min_pixels, max_pixels: bounds between which the image processor resizes.
        prompt: "think", the system prompt of Saliency-R1, or "plain", the chat template's own;
            default "plain" for embedded models, which think unasked, and "think" otherwise.

    Raises:
        ValueError: unknown architecture or prompt, weights not in safetensors, sliding-window
            layers, a non-linear adapter, or a failed self-check.
    """
    vlm = model.load(
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
    capture.self_check(vlm.model)
    return vlm
