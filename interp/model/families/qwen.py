"""Qwen's families alike: the decoder, and the way to it."""

from functools import partial

import torch
from jaxtyping import Float
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
        layers=tuple(_layer(block) for block in decoder.layers),
        final_norm=decoder.norm,
        output_embedding=model.lm_head,
        vision_tower=model.model.visual,
        embed_images=partial(_embeddings, model.model),
        volatile=((model.model, "rope_deltas"),),
        image_token_id=model.config.image_token_id,
        patches_per_token=vision.spatial_merge_size**2,
        n_vocabulary=linear.sizes(model.lm_head)[1],
        n_heads=text.num_attention_heads,
        n_kv_heads=text.num_key_value_heads,
        d_head=vars(text).get("head_dim") or text.hidden_size // text.num_attention_heads,
        n_activations=text.hidden_size + max(_of_decoder(text), n_tower),
        n_tower_heads=vision.num_heads,
        max_positions=text.max_position_embeddings,
        epsilon=text.rms_norm_eps,
    )


def _embeddings(base: nn.Module, **images) -> Float[Tensor, "visual d_model"]:
    return torch.cat(tuple(base.get_image_features(**images).pooler_output))


def narrow_text(text) -> int:
    """Makes a text config as narrow as can be, eight numbers per head; returns its width."""
    width = 8 * text.num_attention_heads
    text.hidden_size, text.intermediate_size = width, 16
    text.rope_parameters = text.rope_parameters | {"mrope_section": [2, 1, 1]}
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


def _layer(block: nn.Module) -> Layer:
    return Layer(
        block=block,
        attention=block.self_attn,
        v_proj=block.self_attn.v_proj,
        o_proj=block.self_attn.o_proj,
        ffn=block.mlp,
        attention_norm=block.input_layernorm,
        ffn_norm=block.post_attention_layernorm,
    )


def _of_decoder(text) -> int:
    """Numbers per token that a decoder layer keeps at once."""
    return 4 * text.hidden_size + 3 * text.intermediate_size
