"""Gemma 3: norms behind attention and FFN, layers with a window, images that see themselves.

Of six layers five read no further back than a window; tokens of one image see each other, later
ones too. γ of a norm is 1 + its weight. All images are squeezed into one square.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from math import isqrt

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from transformers.models.gemma3.modeling_gemma3 import (
    create_masks_for_vision_model,
    get_block_sequence_ids_for_mask,
)

from interp.model.families import qwen, tiles
from interp.model.families.tiles import OLD_KEYS, Tiled, shorten
from interp.model.parts import Layer, Parts

__all__ = ["OLD_KEYS", "locate", "narrow", "shorten"]

_AHEAD = "token_type_ids"


def locate(model: nn.Module) -> Parts:
    """The parts of a Gemma 3, without its peft wrapper.

    Raises:
        ValueError: text whose tokens see later ones.
    """
    config, base = model.config, model.model
    if config.text_config.use_bidirectional_attention:
        raise ValueError(
            "expected text that is read from the left, got use_bidirectional_attention=True in the "
            "text config; a model that embeds texts has no next token to explain"
        )
    side = isqrt(config.mm_tokens_per_image)
    per_token = (config.vision_config.image_size // config.vision_config.patch_size // side) ** 2
    parts = tiles.located(model, Tiled(base.language_model, base.vision_tower, side, per_token))
    return replace(
        parts,
        layers=tuple(_layer(block) for block in base.language_model.layers),
        gamma_offset=1.0,
        check_images=partial(_check_images, parts.check_images),
        seen_with=(_AHEAD,),
        masked=partial(_masked, config.text_config),
        ahead=_AHEAD,
        has_windows=True,
    )


def narrow(config) -> None:
    """Eight numbers per head, one thin layer of the tower."""
    tiles.narrow(config)
    config.text_config.query_pre_attn_scalar = config.text_config.head_dim


def _layer(block: nn.Module) -> Layer:
    return replace(
        qwen.layer(block),
        ffn_norm=block.pre_feedforward_layernorm,
        attention_post_norm=block.post_attention_layernorm,
        ffn_post_norm=block.post_feedforward_layernorm,
    )


def _check_images(check_count, batch: Mapping, is_image: Bool[Tensor, " token"]) -> None:
    types = batch.get(_AHEAD, is_image.new_zeros(1, 0))[0]
    if types.shape != is_image.shape or not torch.equal(types == 1, is_image):
        raise ValueError(
            f"expected {_AHEAD} to be 1 exactly at the image tokens, got another pattern or none; "
            "extend it with zeros for text that is added behind the prompt"
        )
    check_count(batch, is_image)


def _masked(config, arguments: dict) -> dict:
    """Keyword arguments with a mask for each type of layers; none where rows are replayed."""
    given = {name: value for name, value in arguments.items() if name != _AHEAD}
    mask = given.get("attention_mask")
    if mask is None:
        return given | {"attention_mask": dict.fromkeys(config.layer_types)}
    if isinstance(mask, dict):
        return given
    types = arguments.get(_AHEAD, torch.zeros_like(mask))
    masks = create_masks_for_vision_model(
        config=config,
        inputs_embeds=given["inputs_embeds"],
        attention_mask=mask,
        past_key_values=given.get("past_key_values"),
        position_ids=given["position_ids"],
        block_sequence_ids=get_block_sequence_ids_for_mask(types),
    )
    return given | {"attention_mask": masks}
