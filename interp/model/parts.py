"""The parts of a model: the seam between the algebra and the model families."""

from collections.abc import Callable
from dataclasses import dataclass
from threading import RLock

import torch
from jaxtyping import Float
from torch import Tensor, nn

# A model's mode and attention while it is read are seen by all threads: they wait for one another.
ONE_AT_A_TIME = RLock()


@dataclass(frozen=True)
class Layer:
    """The modules of one decoder layer."""

    block: nn.Module
    """The whole layer: residual stream in, residual stream out."""
    attention: nn.Module
    """Puts out a pair: what all heads write to the stream, and the attention weights."""
    v_proj: nn.Module
    o_proj: nn.Module
    ffn: nn.Module
    attention_norm: nn.Module
    """RMS norm of what attention reads."""
    ffn_norm: nn.Module
    """RMS norm of what the FFN reads."""


@dataclass(frozen=True)
class Parts:
    """The modules and sizes that the capture and the algebra need."""

    language_model: nn.Module
    """Takes inputs_embeds, position_ids (three axes) and attention_mask."""
    layers: tuple[Layer, ...]
    final_norm: nn.Module
    output_embedding: nn.Module
    vision_tower: nn.Module
    embed_images: Callable
    """From pixel_values and image_grid_thw to the visual embeddings, as `pooler_output`."""
    volatile: tuple[tuple[nn.Module, str], ...]
    """Attributes that a forward changes and generation needs: (module, name)."""
    image_token_id: int
    patches_per_token: int
    n_vocabulary: int
    """Rows of the output embedding, padding rows included."""
    n_heads: int
    n_kv_heads: int
    d_head: int
    n_activations: int
    """Numbers per token that the widest module keeps at once, in tower or decoder."""
    n_tower_heads: int
    max_positions: int
    epsilon: float
    """Added to the mean square in every norm."""
    injected: tuple[int, ...] = ()
    """Layers behind which something else than attention and FFN enters the residual stream."""

    def refuse_injections(self, call: str) -> None:
        """Raises ValueError where something else than attention and FFN enters the stream.

        Args:
            call: the name of what cannot be computed then.
        """
        if self.injected:
            raise ValueError(
                f"expected a residual stream of embeddings, attention and FFN for {call}, got one "
                f"that something else enters behind layers {list(self.injected)}; ledgers and edge "
                "effects are exact all the same"
            )

    @property
    def n_layers(self) -> int:
        """How many decoder layers there are."""
        return len(self.layers)

    @property
    def attn_implementation(self) -> str:
        """The caller's attention implementation, never a replay's temporary one."""
        with ONE_AT_A_TIME:
            return self.language_model.config._attn_implementation

    @property
    def norm_weight(self) -> Float[Tensor, " d_model"]:
        """γ of the final norm, with what an adapter on it makes of it."""
        if not any(self.final_norm.children()):
            return self.final_norm.weight
        ones = torch.ones_like(self.final_norm.weight)
        return self.final_norm(ones) * (1 + self.epsilon) ** 0.5
