"""InternVL3 and InternVL3.5: tiles and a thumbnail, shuffled, into a decoder of Qwen's."""

from torch import nn

from interp.model.families.tiles import OLD_KEYS, Tiled, located, narrow, shorten
from interp.model.parts import Parts

__all__ = ["OLD_KEYS", "locate", "narrow", "shorten"]


def locate(model: nn.Module) -> Parts:
    """The parts of an InternVL, without its peft wrapper."""
    vision, merged = model.config.vision_config, round(1 / model.config.downsample_ratio)
    base = model.model
    side = vision.image_size[0] // vision.patch_size[0] // merged
    return located(model, Tiled(base.language_model, base.vision_tower, side, merged**2))
