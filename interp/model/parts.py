"""The parts of a model: the seam between the algebra and the model families."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from threading import RLock

import torch
from jaxtyping import Bool, Float, Int
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
    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module
    ffn: nn.Module
    attention_norm: nn.Module
    """RMS norm of what attention reads."""
    ffn_norm: nn.Module
    """RMS norm of what the FFN reads."""
    q_norm: nn.Module | None = None
    """Norm of each head's queries, in front of the rotary embedding; many families have none."""
    k_norm: nn.Module | None = None
    """The same of keys."""
    attention_post_norm: nn.Module | None = None
    """RMS norm of what attention has put out, in front of the stream; most families have none."""
    ffn_post_norm: nn.Module | None = None
    """The same behind the FFN."""

    @property
    def writing(self) -> tuple[nn.Module, nn.Module]:
        """The modules whose output, or its first part, attention and FFN add to the stream."""
        return self.attention_post_norm or self.attention, self.ffn_post_norm or self.ffn


def _embeddings_alone(content: Float[Tensor, "sequence token d_model"]) -> dict:
    return {"inputs_embeds": content}


def _as_they_are(arguments: dict) -> dict:
    return arguments


@dataclass(frozen=True)
class Parts:
    """The modules and sizes that the capture and the algebra need.

    A token's *content* is all that enters the residual stream at its row from outside the layers:
    its embedding, and behind it, in the same vector, what is added behind the first `n_injected`
    layers.
    """

    language_model: nn.Module
    """Takes position_ids, attention_mask, and what `entering` makes of content."""
    layers: tuple[Layer, ...]
    final_norm: nn.Module
    output_embedding: nn.Module
    vision_tower: nn.Module
    embed_images: Callable
    """From the inputs that are of images, by name, to the content of the visual tokens."""
    check_images: Callable[[Mapping, Bool[Tensor, " token"]], None]
    """Raises ValueError unless a batch's images are those of its visual tokens."""
    by_token: Callable[[Tensor], Float[Tensor, "visual value"]]
    """From pixel_values, or anything in their shape, to what is each visual token's. Raises
    ValueError where a token's pixels are not its own."""
    of_tokens: Callable[[Float[Tensor, "visual value"], Tensor], Tensor]
    """The way back, into the shape of other pixel_values."""
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
    gamma_offset: float = 0.0
    """Added to every norm's weight: γ is their sum."""
    n_axes: int = 3
    """Axes of a token's position; those of one axis have the same number on all three elsewhere."""
    has_experts: bool = False
    """Whether FFNs choose among experts: what they put out jumps where a row is given others, and
    no gradient sees that."""
    n_injected: int = 0
    """How many layers, from the first on, have something added behind them (METHODS.md 1.1)."""
    entering: Callable[[Float[Tensor, "sequence token content"]], dict] = _embeddings_alone
    """From content to the keyword arguments with which the language model reads it."""
    entered: Callable[[dict], Float[Tensor, "sequence token content"]] = itemgetter("inputs_embeds")
    """From keyword arguments of the language model to the content that they bring in."""
    seen_with: tuple[str, ...] = ()
    """Inputs with an entry for every token which, besides attention_mask, say what a row sees."""
    masked: Callable[[dict], dict] = _as_they_are
    """From keyword arguments with attention_mask, and those of `seen_with`, to the language
    model's."""
    ahead: str | None = None
    """The one of `seen_with` that is 1 at tokens of images, where those see later ones too."""
    has_windows: bool = False
    """Whether layers of config type "sliding_attention" are read as such."""

    def run(self, arguments: dict):
        """The language model's forward, its masks made for the attention in use."""
        return self.language_model(**self.masked(arguments))

    def placed(self, positions: Int[Tensor, "3 sequence token"]) -> Int[Tensor, "..."]:
        """Positions as the language model takes them."""
        return positions if self.n_axes == 3 else positions[0]

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
        return self.weight_of(self.final_norm)

    def weight_of(self, norm: nn.Module) -> Float[Tensor, " d_model"]:
        """γ of a norm, with what an adapter on it makes of it."""
        if not any(norm.children()):
            return norm.weight + self.gamma_offset if self.gamma_offset else norm.weight
        return norm(torch.ones_like(norm.weight)) * (1 + self.epsilon) ** 0.5
