"""Idefics3 and SmolVLM: tiles with marks between them and a small whole image, into a Llama."""

from torch import nn

from interp.model.families.qwen import narrow_text, shorten_text
from interp.model.families.tiles import Tiled, located
from interp.model.parts import Parts

__all__ = ["OLD_KEYS", "locate", "narrow", "shorten"]

OLD_KEYS = ()  # no version of transformers had other names


def locate(model: nn.Module) -> Parts:
    """The parts of an Idefics3 or SmolVLM, without its peft wrapper."""
    vision, merged, base = model.config.vision_config, model.config.scale_factor, model.model
    side = vision.image_size // vision.patch_size // merged
    return located(model, Tiled(base.text_model, base.vision_model, side, merged**2))


def narrow(config) -> None:
    """Eight numbers per head, one thin layer of the tower."""
    narrow_text(config.text_config)
    vision = config.vision_config
    vision.hidden_size, vision.intermediate_size, vision.num_attention_heads = 32, 32, 2
    vision.num_hidden_layers = 1


def shorten(config, n_layers: int, n_vision_layers: int) -> None:
    """So many layers."""
    shorten_text(config.text_config, n_layers)
    config.vision_config.num_hidden_layers = n_vision_layers
