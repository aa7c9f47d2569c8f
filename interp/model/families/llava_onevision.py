"""LLaVA-OneVision: a small whole image, then a mosaic without its padding, line by line.

A learned vector stands at each line's end, the same for every image.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers.models.llava_onevision.modeling_llava_onevision import (
    image_size_to_num_patches,
)

from interp.model.families.tiles import OLD_KEYS, Tiled, located, narrow, shorten
from interp.model.parts import Parts

__all__ = ["OLD_KEYS", "locate", "narrow", "shorten"]


def locate(model: nn.Module) -> Parts:
    """The parts of a LLaVA-OneVision, without its peft wrapper."""
    vision, base = model.config.vision_config, model.model
    side = vision.image_size // vision.patch_size
    parts = located(model, Tiled(base.language_model, base.vision_tower, side, 1))
    return replace(
        parts,
        check_images=partial(_check_images, model.config),
        by_token=_by_token,
        of_tokens=_by_token,
    )


def _check_images(config, batch: Mapping, is_image: Bool[Tensor, " token"]) -> None:
    """How many tokens a picture becomes the model counts itself, and says so."""
    absent = [name for name in ("image_sizes", "batch_num_images") if name not in batch]
    if absent:
        raise ValueError(
            f"expected {' and '.join(absent)} in the inputs, got {sorted(batch)}; pass all the "
            "processor gives"
        )
    together = [int(n) for n in batch["batch_num_images"] for _ in range(int(n))]
    sides = config.image_grid_pinpoints, config.vision_config.image_size
    tiles = [
        image_size_to_num_patches(size, *sides) if n == 1 else 1
        for size, n in zip(batch["image_sizes"], together, strict=True)
    ]
    if batch["pixel_values"].shape[:2] != (len(tiles), max(tiles)):
        raise ValueError(
            f"expected {len(tiles)} x {max(tiles)} tiles for image_sizes="
            f"{batch['image_sizes'].tolist()}, got {tuple(batch['pixel_values'].shape[:2])}; take "
            "both from one processor call"
        )


def _by_token(values: Tensor, _like: Tensor | None = None) -> Float[Tensor, "visual value"]:
    raise ValueError(
        "expected visual tokens with pixels of their own, got those of a LLaVA-OneVision: it cuts "
        "padding off behind the tower, shrinks what is left, and ends lines with tokens of no "
        "pixels; occlusion paints the image itself"
    )
