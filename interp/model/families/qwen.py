"""Qwen's families alike: the decoder, which others have too, and the way to it."""

from collections.abc import Mapping
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from interp.model import linear
from interp.model.parts import Layer, Parts

# Keys of adapters as transformers before 4.52 called them, and the language model alone; what is
# called as today comes first, and stays.
OLD_KEYS = (
    ("base_model.model.model.language_model.", "base_model.model.model.language_model."),
    ("base_model.model.model.layers.", "base_model.model.model.language_model.layers."),
    ("base_model.model.model.embed_tokens", "base_model.model.model.language_model.embed_tokens"),
    ("base_model.model.language_model.model.", "base_model.model.model.language_model."),
    ("base_model.model.language_model.", "base_model.model.model.language_model."),
    ("base_model.model.visual.", "base_model.model.model.visual."),
)


def located(model: nn.Module, n_tower: int) -> Parts:
    """The parts of a model, whose tower keeps `n_tower` numbers per visual token at once."""
    text, vision = model.config.text_config, model.config.vision_config
    decoder = model.model.language_model
    return Parts(
        language_model=decoder,
        layers=tuple(layer(block) for block in decoder.layers),
        final_norm=decoder.norm,
        output_embedding=model.lm_head,
        vision_tower=model.model.visual,
        embed_images=partial(_embeddings, model.model),
        check_images=partial(_check_images, vision.spatial_merge_size**2),
        by_token=partial(_by_token, vision.spatial_merge_size**2),
        of_tokens=_of_tokens,
        volatile=((model.model, "rope_deltas"),),
        image_token_id=model.config.image_token_id,
        patches_per_token=vision.spatial_merge_size**2,
        n_vocabulary=linear.sizes(model.lm_head)[1],
        n_heads=text.num_attention_heads,
        n_kv_heads=text.num_key_value_heads,
        d_head=vars(text).get("head_dim") or text.hidden_size // text.num_attention_heads,
        n_activations=text.hidden_size + max(of_decoder(text), n_tower),
        n_tower_heads=vision.num_heads,
        max_positions=text.max_position_embeddings,
        epsilon=text.rms_norm_eps,
    )


def _embeddings(base: nn.Module, **images) -> Float[Tensor, "visual d_model"]:
    return torch.cat(tuple(base.get_image_features(**images).pooler_output))


def _by_token(n_patches: int, values: Float[Tensor, "patch value"]) -> Float[Tensor, "visual _"]:
    """The patches that the merger makes one token of follow each other."""
    return rearrange(values, "(token patch) v -> token (patch v)", patch=n_patches)


def _of_tokens(cells: Float[Tensor, "visual _"], like: Tensor) -> Float[Tensor, "patch value"]:
    return cells.reshape(-1, like.shape[-1])


def _check_images(n_patches: int, batch: Mapping, is_image: Bool[Tensor, " token"]) -> None:
    types = batch.get("mm_token_type_ids", is_image.new_zeros(1, 0))[0]
    if types.shape != is_image.shape or not torch.equal(types == 1, is_image):
        raise ValueError(
            "expected mm_token_type_ids to be 1 exactly at the image tokens, got another pattern "
            "or none; extend it with zeros for text that is added behind the prompt"
        )
    if "image_grid_thw" not in batch:
        raise ValueError(
            f"expected image_grid_thw in the inputs, got {sorted(batch)}; pass all the processor "
            "gives"
        )
    pixels, grids = batch["pixel_values"], batch["image_grid_thw"]
    if len(pixels) != int(grids.prod(dim=1).sum()):
        raise ValueError(
            f"expected {int(grids.prod(dim=1).sum())} patches for image_grid_thw={grids.tolist()}, "
            f"got {len(pixels)} rows of pixel_values; take both from one processor call"
        )
    if len(pixels) != n_patches * int(is_image.sum()):
        raise ValueError(
            f"expected {len(pixels) // n_patches} image tokens, got {int(is_image.sum())}; "
            "take input_ids and pixel_values from one processor call"
        )


def narrow_text(text) -> int:
    """Makes a text config as narrow as can be, eight numbers per head; returns its width."""
    width = 8 * text.num_attention_heads
    text.hidden_size, text.intermediate_size = width, 16
    if "mrope_section" in text.rope_parameters:
        text.rope_parameters = text.rope_parameters | {"mrope_section": [2, 1, 1]}
    if getattr(text, "head_dim", None):
        text.head_dim = 8
    return width


def shorten_text(text, n_layers: int) -> None:
    """So many layers of a text config."""
    text.num_hidden_layers = n_layers
    if hasattr(text, "layer_types"):
        text.layer_types = text.layer_types[:n_layers]


def of_patches(vision, per_patch: int) -> int:
    """Numbers per visual token, out of a layer's per patch and the patch's own pixels."""
    pixels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return vision.spatial_merge_size**2 * (per_patch + pixels)


def layer(block: nn.Module) -> Layer:
    """A decoder layer of Qwen's or Llama's."""
    attention = block.self_attn
    return Layer(
        block=block,
        attention=attention,
        q_proj=attention.q_proj,
        k_proj=attention.k_proj,
        v_proj=attention.v_proj,
        o_proj=attention.o_proj,
        ffn=block.mlp,
        attention_norm=block.input_layernorm,
        ffn_norm=block.post_attention_layernorm,
        q_norm=getattr(attention, "q_norm", None),
        k_norm=getattr(attention, "k_norm", None),
    )


def of_decoder(text) -> int:
    """Numbers per token that a decoder layer keeps at once."""
    return 4 * text.hidden_size + 3 * text.intermediate_size
