"""Qwen3-VL and Qwen3-VL-MoE: norms on queries and keys, and an image that enters several layers.

DeepStack: states of inner layers of the vision tower are added to the residual stream at visual
tokens, level l behind decoder layer l.
"""

from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.model.families.qwen import located, narrow_text, of_patches, shorten_text
from interp.model.parts import Parts

__all__ = ["OLD_KEYS", "locate", "narrow", "shorten"]

OLD_KEYS = ()  # no version of transformers had other names


def locate(model: nn.Module) -> Parts:
    """The parts of a Qwen3-VL, without its peft wrapper."""
    vision = model.config.vision_config
    n_levels = min(len(vision.deepstack_visual_indexes), model.config.text_config.num_hidden_layers)
    per_patch = 6 * vision.hidden_size + 2 * vision.intermediate_size
    parts = located(model, of_patches(vision, per_patch))
    return replace(
        parts,
        n_activations=parts.n_activations + 2 * n_levels * model.config.text_config.hidden_size,
        embed_images=partial(_content, model.model, n_levels),
        n_injected=n_levels,
        has_experts=hasattr(model.config.text_config, "num_experts"),
        entering=partial(_entering, n_levels),
        entered=partial(_entered, n_levels),
    )


def narrow(config) -> None:
    """Eight numbers per head; of the tower, as many thin layers as the decoder gets levels from."""
    text, vision = config.text_config, config.vision_config
    vision.out_hidden_size = narrow_text(text)
    if hasattr(text, "moe_intermediate_size"):
        text.moe_intermediate_size = 16
    vision.hidden_size, vision.intermediate_size, vision.num_heads = 32, 32, 2
    vision.depth = max(1, len(vision.deepstack_visual_indexes))
    vision.deepstack_visual_indexes = list(range(len(vision.deepstack_visual_indexes)))


def shorten(config, n_layers: int, n_vision_layers: int) -> None:
    """So many layers; of the tower's levels, the first alone: what each layer adds shows then."""
    vision = config.vision_config
    shorten_text(config.text_config, n_layers)
    vision.depth = n_vision_layers
    vision.deepstack_visual_indexes = [0] if vision.deepstack_visual_indexes else []


def _content(base: nn.Module, n_levels: int, **images) -> Float[Tensor, "visual content"]:
    output = base.get_image_features(**images)
    levels = (output.pooler_output, *output.deepstack_features[:n_levels])
    return torch.cat([torch.cat(tuple(level)) for level in levels], dim=-1)


def _entering(n_levels: int, content: Float[Tensor, "sequence token content"]) -> dict:
    """Every level at every token: it is 0 at text, and adding 0 changes nothing."""
    embeddings, *levels = content.chunk(1 + n_levels, dim=-1)
    everywhere = torch.ones(content.shape[:2], dtype=torch.bool, device=content.device)
    return {
        "inputs_embeds": embeddings,
        "visual_pos_masks": everywhere,
        "deepstack_visual_embeds": [level.flatten(0, 1) for level in levels],
    }


def _entered(n_levels: int, arguments: dict) -> Float[Tensor, "sequence token content"]:
    embeddings, features = arguments["inputs_embeds"], arguments.get("deepstack_visual_embeds")
    levels = [torch.zeros_like(embeddings) for _ in range(n_levels)]
    for level, own in zip(levels, features or [], strict=False):
        level[arguments["visual_pos_masks"]] = own.to(level)
    return torch.cat([embeddings, *levels], dim=-1)
