"""Qwen2.5-VL: its modules and sizes."""

from torch import nn

from interp.model.families.qwen import OLD_KEYS, located, narrow_text, of_patches, shorten_text
from interp.model.parts import Parts

__all__ = ["OLD_KEYS", "locate", "narrow", "shorten"]


def locate(model: nn.Module) -> Parts:
    """The parts of a Qwen2.5-VL, without its peft wrapper."""
    vision = model.config.vision_config
    per_patch = 6 * vision.hidden_size + 3 * vision.intermediate_size
    return located(model, of_patches(vision, per_patch))


def narrow(config) -> None:
    """Eight numbers per head, one thin layer of the tower."""
    vision = config.vision_config
    vision.out_hidden_size = narrow_text(config.text_config)
    vision.hidden_size, vision.intermediate_size, vision.num_heads = 32, 32, 2
    vision.depth, vision.fullatt_block_indexes = 1, [0]


def shorten(config, n_layers: int, n_vision_layers: int) -> None:
    """So many layers; in the tower, all with full attention only where the model's first are."""
    vision = config.vision_config
    shorten_text(config.text_config, n_layers)
    vision.depth = n_vision_layers
    kept = [k for k in vision.fullatt_block_indexes if k < n_vision_layers]
    vision.fullatt_block_indexes = kept
