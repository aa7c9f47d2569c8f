"""Idefics3 and SmolVLM: tiles with marks between them and a small whole image, into a Llama."""

from torch import nn

from interp.model.families.tiles import Tiled, located, narrow, shorten
from interp.model.parts import Parts

__all__ = ["OLD_KEYS", "locate", "narrow", "shorten"]

OLD_KEYS = ()  # no version of transformers had other names


def locate(model: nn.Module) -> Parts:
    """The parts of an Idefics3 or SmolVLM, without its peft wrapper."""
    vision, merged, base = model.config.vision_config, model.config.scale_factor, model.model
    side = vision.image_size // vision.patch_size // merged
    return located(model, Tiled(base.text_model, base.vision_model, side, merged**2))
