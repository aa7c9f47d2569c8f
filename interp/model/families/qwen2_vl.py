"""Qwen2-VL: the decoder of Qwen2.5-VL behind a tower whose every layer sees whole images."""

from torch import nn

from interp.model.families.qwen import OLD_KEYS, located, narrow_text, of_patches, shorten_text
from interp.model.parts import Parts

__all__ = ["OLD_KEYS", "locate", "narrow", "shorten"]


def locate(model: nn.Module) -> Parts:
    """The parts of a Qwen2-VL, without its peft wrapper."""
    vision = model.config.vision_config
    per_patch = (6 + 2 * vision.mlp_ratio) * vision.embed_dim
    return located(model, of_patches(vision, per_patch))


def narrow(config) -> None:
    """Eight numbers per head, one thin layer of the tower."""
    vision = config.vision_config
    vision.hidden_size = narrow_text(config.text_config)  # of what the tower puts out
    vision.embed_dim, vision.mlp_ratio, vision.num_heads, vision.depth = 32, 1, 2, 1


def shorten(config, n_layers: int, n_vision_layers: int) -> None:
    """So many layers."""
    shorten_text(config.text_config, n_layers)
    config.vision_config.depth = n_vision_layers
