"""Families whose images are cut into tiles of one size, with positions on one axis.

Their decoders are those of language models; a projector makes one token out of several patches.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from interp.model import linear
from interp.model.families.qwen import layer, narrow_text, of_decoder, shorten_text
from interp.model.parts import Parts

_DECODER = "base_model.model.model.language_model."
# Keys of adapters as transformers before 4.52 called them, and the language model alone; what is
# called as today comes first, and stays.
OLD_KEYS = (
    (_DECODER, _DECODER),
    ("base_model.model.model.layers.", f"{_DECODER}layers."),
    ("base_model.model.model.embed_tokens", f"{_DECODER}embed_tokens"),
    ("base_model.model.language_model.model.", _DECODER),
    ("base_model.model.language_model.lm_head", "base_model.model.lm_head"),
    ("base_model.model.vision_tower.", "base_model.model.model.vision_tower."),
    ("base_model.model.multi_modal_projector.", "base_model.model.model.multi_modal_projector."),
)


@dataclass(frozen=True)
class Tiled:
    """The parts that differ between these families."""

    decoder: nn.Module
    tower: nn.Module
    side: int
    """Visual tokens along a tile's side."""
    patches_per_token: int


def located(model: nn.Module, tiled: Tiled) -> Parts:
    """The parts of a model whose every tile is side x side tokens, row by row."""
    text, vision = model.config.text_config, model.config.vision_config
    per_patch = 6 * vision.hidden_size + 2 * vision.intermediate_size
    n_tower = tiled.patches_per_token * per_patch
    return Parts(
        language_model=tiled.decoder,
        layers=tuple(layer(block) for block in tiled.decoder.layers),
        final_norm=tiled.decoder.norm,
        output_embedding=model.lm_head,
        vision_tower=tiled.tower,
        embed_images=partial(_embeddings, model.model),
        check_images=partial(_check_images, tiled.side**2),
        by_token=partial(_by_token, tiled.side),
        of_tokens=partial(_of_tokens, tiled.side),
        volatile=(),
        image_token_id=model.config.image_token_id,
        patches_per_token=tiled.patches_per_token,
        n_vocabulary=linear.sizes(model.lm_head)[1],
        n_heads=text.num_attention_heads,
        n_kv_heads=text.num_key_value_heads,
        d_head=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        n_activations=text.hidden_size + max(of_decoder(text), n_tower),
        n_tower_heads=vision.num_attention_heads,
        max_positions=text.max_position_embeddings,
        epsilon=text.rms_norm_eps,
        n_axes=1,
    )


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


def _embeddings(base: nn.Module, **images) -> Float[Tensor, "visual d_model"]:
    features = base.get_image_features(**images).pooler_output
    features = features.flatten(0, 1) if isinstance(features, Tensor) else torch.cat(list(features))
    return features.flatten(0, -2)


def _check_images(per_tile: int, batch: Mapping, is_image: Bool[Tensor, " token"]) -> None:
    n_tiles = batch["pixel_values"].flatten(0, -4).shape[0]
    if n_tiles * per_tile != int(is_image.sum()):
        raise ValueError(
            f"expected {n_tiles * per_tile} image tokens for {n_tiles} tiles, got "
            f"{int(is_image.sum())}; take input_ids and pixel_values from one processor call"
        )


def _by_token(side: int, values: Float[Tensor, "..."]) -> Float[Tensor, "visual value"]:
    tiles = values.flatten(0, -4)
    return rearrange(tiles, "n c (r h) (k w) -> (n r k) (c h w)", r=side, k=side)


def _of_tokens(side: int, cells: Float[Tensor, "visual value"], like: Tensor) -> Tensor:
    height, width = (size // side for size in like.shape[-2:])
    pattern = "(n r k) (c h w) -> n c (r h) (k w)"
    tiles = rearrange(cells, pattern, r=side, k=side, h=height, w=width)
    return tiles.unflatten(0, (-1, *like.shape[1:-3])) if like.ndim > 4 else tiles
