"""Prefill: the model's own forward over one sequence, and what it leaves for rows to read.

Whatever the attention implementation, with its cache. One pre-hook reads what the language model
was given; nothing else is touched, so it costs what a forward costs. A second prefill of the same
sequence with other content at some rows (`prefill_with`) gives the reference runs of METHODS.md
3.2: grid, positions and mask stay.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from einops import repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp.checks import check_inputs
from interp.labels import SINK_PEAK
from interp.model import Parts, parts, undisturbed


@dataclass(frozen=True)
class Prefill:
    """One forward of one sequence: what rows can read, and what it put out."""

    keys: list[Float[Tensor, "1 kv_head token d_head"]]
    """By layer, rotary embedding applied."""
    values: list[Float[Tensor, "1 kv_head token d_head"]]
    """By layer, value bias included."""
    embeddings: Float[Tensor, "token d_model"]
    """h⁰: what enters the first layer."""
    position_ids: Int[Tensor, "3 token"]
    is_visible: Bool[Tensor, " token"]
    """False on padding."""
    logits: Float[Tensor, "target vocabulary"] | None
    """The model's own output at the queried rows; None in a reference run."""
    given: dict
    """What the language model was called with."""
    peaks: Float[Tensor, " token"] | None
    """max|h| / rms(h), exceeded behind at least half of the layers L/4 … 3L/4: how sinks show
    (METHODS.md 3.6). None in a reference run."""

    @property
    def is_sink(self) -> Bool[Tensor, " token"]:
        """Rows of massive activation, which gather attention whatever they hold."""
        return (self.peaks > SINK_PEAK) & self.is_visible


def prefill(model: nn.Module, batch, positions: Int[Tensor, " target"]) -> Prefill:
    """The model's own forward over one sequence, its cache kept, logits only at `positions`.

    Raises:
        ValueError: inputs that do not belong together (see `checks`).
    """
    where = parts(model)
    check_inputs(where, batch)
    unique, back = torch.unique(positions, return_inverse=True)
    with (
        undisturbed(model),
        torch.no_grad(),
        listening(where) as given,
        _watching(where) as peaks,
    ):
        out = model(**batch, use_cache=True, logits_to_keep=unique)
    given["past_key_values"] = None
    layers = out.past_key_values.layers
    return Prefill(
        keys=[layer.keys for layer in layers],
        values=[layer.values for layer in layers],
        embeddings=given["inputs_embeds"][0],
        position_ids=_positions(given),
        is_visible=batch["attention_mask"][0].bool(),
        logits=out.logits[0][back],
        given=given,
        peaks=_usual(torch.stack(peaks)),
    )


def prefill_with(
    model: nn.Module,
    clean: Prefill,
    rows: Int[Tensor, " row"],
    embeddings: Float[Tensor, "row d_model"],
) -> Prefill:
    """The reference run: the same sequence with other embeddings at some rows."""
    where = parts(model)
    replaced = clean.embeddings.clone()
    replaced[rows] = embeddings.to(replaced)
    given = clean.given | {"inputs_embeds": replaced[None], "use_cache": True}
    with undisturbed(model), torch.no_grad():
        layers = where.language_model(**given).past_key_values.layers
    return Prefill(
        keys=[layer.keys for layer in layers],
        values=[layer.values for layer in layers],
        embeddings=replaced,
        position_ids=clean.position_ids,
        is_visible=clean.is_visible,
        logits=None,
        given=given,
        peaks=None,
    )


@contextmanager
def listening(where: Parts) -> Iterator[dict]:
    """What the language model is called with inside, by keyword."""
    given: dict = {}

    def look(_module, _args, kwargs):
        given.update(kwargs)

    hook = where.language_model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield given
    finally:
        hook.remove()


@contextmanager
def _watching(where: Parts) -> Iterator[list[Tensor]]:
    """max|h| / rms(h) of every token behind each of the layers L/4 … 3L/4."""
    peaks: list[Tensor] = []

    def look(_module, _args, hidden):
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        largest = torch.linalg.vector_norm(hidden[0], ord=torch.inf, dim=-1, dtype=dtype)
        length = torch.linalg.vector_norm(hidden[0], dim=-1, dtype=dtype)
        peaks.append(largest * hidden.shape[-1] ** 0.5 / (length + torch.finfo(dtype).tiny))

    first = -(-where.n_layers // 4)
    depths = range(first, max(first, 3 * where.n_layers // 4) + 1)
    watched = [where.language_model.layers[depth - 1] for depth in depths]
    hooks = [layer.register_forward_hook(look) for layer in watched]
    try:
        yield peaks
    finally:
        for hook in hooks:
            hook.remove()


def _usual(peaks: Float[Tensor, "layer token"]) -> Float[Tensor, " token"]:
    """The largest value that at least half of the layers reach."""
    n_half = -(-len(peaks) // 2)
    return peaks.sort(dim=0, descending=True).values[n_half - 1]


def _positions(given: dict) -> Int[Tensor, "3 token"]:
    """Three-axis positions as the language model got them; for text alone it counts by itself."""
    if given["position_ids"] is None:
        embeddings = given["inputs_embeds"]
        counted = torch.arange(embeddings.shape[1], device=embeddings.device)
        return repeat(counted, "t -> xyz t", xyz=3)
    return given["position_ids"][-3:, 0]
