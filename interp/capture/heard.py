"""Projections of a forward that somebody else makes, by reference: a trainer's, with its gradients.

    with hearing(model, layers=[4]) as heard:
        loss = trainer.compute_loss(…)           # whatever attention and checkpointing it uses
    heard.attention(4, rows, is_visible)         # α on the autograd graph

Nothing is computed while the forward runs, so that gradient checkpointing, where it is not
reentrant, recomputes the same graph. What this package itself reads of the model is not heard.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp.capture.attending import attention_rows, turned
from interp.model import families
from interp.model.parts import Parts


@dataclass
class Heard:
    """Projections of the first forward inside; by layer where it is a dict."""

    parts: Parts
    queries: dict[int, Float[Tensor, "sequence token head_d_head"]] = field(default_factory=dict)
    """In front of norm and rotary embedding; so keys."""
    keys: dict[int, Float[Tensor, "sequence token kv_d_head"]] = field(default_factory=dict)
    values: dict[int, Float[Tensor, "sequence token kv_d_head"]] = field(default_factory=dict)
    rotary: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    final: list[Float[Tensor, "sequence token d_model"]] = field(default_factory=list)
    """The input of the final norm."""
    arguments: dict = field(default_factory=dict)
    """Keyword arguments of the language model."""

    def attention(
        self,
        layer: int,
        rows: Int[Tensor, "sequence row"],
        is_visible: Bool[Tensor, "all_sequences token"],
        numbers: list[int] | None = None,
    ) -> Float[Tensor, "sequence row head token"]:
        """α of some rows of sequences, with gradients where the forward had them.

        A row is its own only source where nothing before it is visible.

        Args:
            layer: one that was listened to.
            rows: of each sequence, padding included.
            is_visible: False on padding; of all sequences.
            numbers: which sequences `rows` are of; all of them by default.

        Raises:
            ValueError: a forward with gradients whose graph is gone, as reentrant gradient
                checkpointing leaves it: a loss would silently have none.
        """
        self._check_graph(layer)
        module = self.parts.layers[layer]
        numbers = list(range(len(rows))) if numbers is None else numbers
        is_visible = is_visible[numbers]
        at = rearrange(rows, "s r -> s r 1")
        projected = _wide(self.queries[layer][numbers])
        queries = projected.gather(1, at.expand(-1, -1, projected.shape[-1]))
        rotary = self._rotary(layer, numbers)
        keys = turned(_wide(self.keys[layer][numbers]), module.k_norm, rotary)
        of_rows = [one.gather(1, at.expand(-1, -1, one.shape[-1])) for one in rotary]
        tokens = torch.arange(is_visible.shape[1], device=rows.device)
        is_seen = (rearrange(is_visible, "s t -> s 1 t") & (tokens <= at)) | (tokens == at)
        window = getattr(module.attention, "sliding_window", None)
        if window:
            is_seen = is_seen & (at - tokens < window)
        queries = turned(queries, module.q_norm, tuple(of_rows))
        return attention_rows(queries, keys, is_seen, module.attention.scaling)

    def _rotary(self, layer: int, numbers: list[int]) -> tuple[Tensor, Tensor]:
        n_sequences = len(self.queries[layer])
        return tuple(_wide(one).expand(n_sequences, -1, -1)[numbers] for one in self.rotary[layer])

    def _check_graph(self, layer: int) -> None:
        if layer not in self.queries:
            raise ValueError(f"expected a forward through layer {layer} to listen to, got none")
        if torch.is_grad_enabled() and not any(one.requires_grad for one in self.queries.values()):
            raise ValueError(
                f"expected gradients at q_proj of layers {sorted(self.queries)}, got none: "
                "reentrant gradient checkpointing leaves no graph; set "
                "gradient_checkpointing_kwargs: {use_reentrant: false}"
            )


@contextmanager
def hearing(model: nn.Module, layers: Iterable[int]) -> Iterator[Heard]:
    """Context in which projections of some layers, and the final states, are kept by reference."""
    parts = families.parts(model)
    heard, decoder = Heard(parts), parts.language_model
    hooks = [
        decoder.register_forward_pre_hook(_arguments(heard.arguments), with_kwargs=True),
        parts.final_norm.register_forward_pre_hook(_input(heard.final)),
    ]
    for n in layers:
        layer = parts.layers[n]
        hooks += [
            layer.q_proj.register_forward_hook(_output(heard.queries, n)),
            layer.k_proj.register_forward_hook(_output(heard.keys, n)),
            layer.v_proj.register_forward_hook(_output(heard.values, n)),
            layer.attention.register_forward_pre_hook(_turning(heard.rotary, n), with_kwargs=True),
        ]
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()


def _arguments(kept: dict):
    def hook(_module, _args, kwargs) -> None:
        if not kept:
            kept.update(kwargs)

    return hook


def _input(kept: list):
    def hook(_module, args) -> None:
        if not kept:
            kept.append(args[0])

    return hook


def _output(kept: dict, layer: int):
    def hook(_module, _args, output) -> None:
        kept.setdefault(layer, output)  # a checkpointed layer runs again in the backward pass

    return hook


def _turning(kept: dict, layer: int):
    def hook(_module, _args, kwargs) -> None:
        kept.setdefault(layer, kwargs["position_embeddings"])

    return hook


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
