"""InternVL3 and InternVL3.5: tiles and a thumbnail, shuffled, into a decoder of Qwen's."""

from torch import nn

from interp.model.families.qwen import narrow_text, shorten_text
from interp.model.families.tiles import OLD_KEYS, Tiled, located
from interp.model.parts import Parts

__all__ = ["OLD_KEYS", "locate", "narrow", "shorten"]


def locate(model: nn.Module) -> Parts:
    """The parts of an InternVL, without its peft wrapper."""
    vision, merged = model.config.vision_config, round(1 / model.config.downsample_ratio)
    base = model.model
    side = vision.image_size[0] // vision.patch_size[0] // merged
    return located(model, Tiled(base.language_model, base.vision_tower, side, merged**2))


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
