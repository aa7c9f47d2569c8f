"""Prefill: the model's own forward over sequences, and what it leaves for rows to read.

Whatever the attention implementation, with its cache. One pre-hook reads what the language model
was given, one lets the output embedding see only the queried rows; nothing else is touched, so it
costs what a forward costs. Several sequences ride in one forward, padded on the left (`prefills`),
and are read one by one without their padding. A second prefill of the same
sequence with other content at some rows (`prefill_with`) gives the reference runs of METHODS.md
3.2: grid, positions and mask stay.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from interp.capture.checks import check_inputs
from interp.capture.padding import padded
from interp.model import families
from interp.model.parts import Parts
from interp.model.state import undisturbed
from interp.vocabulary import SINK_PEAK


@dataclass(frozen=True)
class Prefill:
    """One forward of one sequence: what rows can read, and what it put out."""

    keys: list[Float[Tensor, "1 kv_head token d_head"]]
    """By layer, rotary embedding applied."""
    values: list[Float[Tensor, "1 kv_head token d_head"]]
    """By layer, value bias included."""
    content: Float[Tensor, "token content"]
    """All that enters the stream from outside the layers: `Parts` says how."""
    position_ids: Int[Tensor, "3 token"]
    is_visible: Bool[Tensor, " token"]
    """False on padding."""
    logits: Float[Tensor, "target vocabulary"] | None
    """The model's own output at the queried rows; None in a reference run or a generation."""
    given: dict
    """Keyword arguments of the language model's call."""
    peaks: Float[Tensor, " token"] | None
    """Largest max|h| / rms(h) that at least half of the layers L/4 … 3L/4 reach: how sinks show
    (METHODS.md 3.6). None in a reference run or a generation."""

    @property
    def levels(self) -> Float[Tensor, "level token d_model"]:
        """The content by where it enters: h⁰, then what is added behind layer after layer."""
        width = self.given["inputs_embeds"].shape[-1]
        return rearrange(self.content, "t (level d) -> level t d", d=width)

    @property
    def is_sink(self) -> Bool[Tensor, " token"] | None:
        """Rows of massive activation, which gather attention whatever they hold; None unknown."""
        return None if self.peaks is None else (self.peaks > SINK_PEAK) & self.is_visible


@dataclass(frozen=True)
class Prefills:
    """Several sequences after one forward, padded on the left to one length."""

    keys: list[Float[Tensor, "sequence kv_head token d_head"]]
    values: list[Float[Tensor, "sequence kv_head token d_head"]]
    sequences: list[Prefill]
    """Each without its padding; views of the same tensors."""
    n_padding: list[int]
    kept: Callable[[list[Int[Tensor, " _"]]], list | None] = lambda _rows: None
    """Clean replays of some rows of each sequence that are known already, or None; without what
    attention and FFN wrote."""


def prefill(model: nn.Module, batch, positions: Int[Tensor, " target"]) -> Prefill:
    """The model's own forward over one sequence, its cache kept, logits only at `positions`.

    Raises:
        ValueError: inputs that do not belong together (see `checks`).
    """
    check_inputs(families.parts(model), batch)
    return _prefills(model, batch, [positions], [0]).sequences[0]


def prefills(model: nn.Module, batches: list, positions: list[Int[Tensor, " _"]]) -> Prefills:
    """`prefill` of several sequences in one forward; each as if it were alone.

    Raises:
        ValueError: inputs that do not belong together (see `checks`).
    """
    parts = families.parts(model)
    for batch in batches:
        check_inputs(parts, batch)
    longest = max(batch["input_ids"].shape[1] for batch in batches)
    n_padding = [longest - batch["input_ids"].shape[1] for batch in batches]
    moved = [rows + n for rows, n in zip(positions, n_padding, strict=True)]
    return _prefills(model, padded(parts, batches, n_padding), moved, n_padding)


def _prefills(model: nn.Module, batch, positions: list, n_padding: list[int]) -> Prefills:
    """One forward; `positions` count the padding."""
    parts = families.parts(model)
    with (
        undisturbed(model),
        torch.no_grad(),
        listening(parts) as arguments,
        _watching(parts) as peaks,
        _choosing(parts, positions),
    ):
        # A cache made for the model would keep no more of a sliding layer than its window.
        out = model(**batch, use_cache=True, past_key_values=DynamicCache())
    arguments["past_key_values"] = None
    layers = out.past_key_values.layers
    keys, values = [layer.keys for layer in layers], [layer.values for layer in layers]
    logits = out.logits[0].split([len(rows) for rows in positions])
    peaks, coordinates = _usual(torch.stack(peaks)), positions_of(arguments)
    content = parts.entered(arguments)
    sequences = [
        Prefill(
            keys=[layer[s : s + 1, :, n:] for layer in keys],
            values=[layer[s : s + 1, :, n:] for layer in values],
            content=content[s, n:],
            position_ids=coordinates[:, s, n:],
            is_visible=batch["attention_mask"][s, n:].bool(),
            logits=logits[s],
            given=_alone(parts, arguments | _mask_inputs(parts, batch), coordinates, s, n)
            | parts.entering(content[s : s + 1, n:]),
            peaks=peaks[s, n:],
        )
        for s, n in enumerate(n_padding)
    ]
    return Prefills(keys, values, sequences, n_padding)


def _alone(
    parts: Parts, arguments: dict, coordinates: Tensor, sequence: int, n_padding: int
) -> dict:
    """Keyword arguments of the language model's call for one of the sequences alone.

    Positions are said outright: a model that counts them by itself would begin behind the padding.
    """
    sequence_slice = slice(sequence, sequence + 1)
    by_token = _mask_inputs(parts, arguments)
    return arguments | {
        **{name: value[sequence_slice, n_padding:] for name, value in by_token.items()},
        "position_ids": parts.placed(coordinates[:, sequence_slice, n_padding:]),
    }


def _mask_inputs(parts: Parts, named: Mapping) -> dict[str, Tensor]:
    """Those of some inputs or arguments that say what each row sees."""
    return {name: named[name] for name in ("attention_mask", *parts.seen_with) if name in named}


@contextmanager
def _choosing(parts: Parts, positions: list[Int[Tensor, " _"]]) -> Iterator[None]:
    """Gives the output embedding only the queried rows, joined into one row of a batch."""

    def look(_module, args):
        chosen = [hidden[rows] for hidden, rows in zip(args[0], positions, strict=True)]
        return (rearrange(torch.cat(chosen), "n d -> 1 n d"),)

    hook = parts.output_embedding.register_forward_pre_hook(look)
    try:
        yield
    finally:
        hook.remove()


def prefill_with(
    model: nn.Module,
    clean: Prefill,
    rows: Int[Tensor, " row"],
    content: Float[Tensor, "row content"],
) -> Prefill:
    """The reference run: the same sequence with other content at some rows."""
    return prefills_with(model, clean, [(rows, content)])[0]


def prefills_with(
    model: nn.Module,
    clean: Prefill,
    replacements: list[tuple[Int[Tensor, " _"], Float[Tensor, "_ content"]]],
) -> list[Prefill]:
    """`prefill_with` for several replacements of one sequence, in one forward."""
    parts, n_runs = families.parts(model), len(replacements)
    replaced = repeat(clean.content, "t c -> run t c", run=n_runs).clone()
    for run, (rows, content) in enumerate(replacements):
        replaced[run, rows] = content.to(replaced)
    arguments = clean.given | parts.entering(replaced) | several(parts, clean.given, n_runs)
    arguments |= {"use_cache": True, "past_key_values": DynamicCache()}
    with undisturbed(model), torch.no_grad():
        layers = parts.run(arguments).past_key_values.layers
    return [
        Prefill(
            keys=[layer.keys[run : run + 1] for layer in layers],
            values=[layer.values[run : run + 1] for layer in layers],
            content=replaced[run],
            position_ids=clean.position_ids,
            is_visible=clean.is_visible,
            logits=None,
            given=clean.given | parts.entering(replaced[run : run + 1]),
            peaks=None,
        )
        for run in range(n_runs)
    ]


def several(parts: Parts, given: dict, n: int) -> dict:
    """Masks and positions of a language model's call, for so many sequences alike."""
    by_token, positions = _mask_inputs(parts, given), given["position_ids"]
    return {
        **{name: value.expand(n, *value.shape[1:]) for name, value in by_token.items()},
        "position_ids": positions.expand(*positions.shape[:-2], n, positions.shape[-1]),
    }


@contextmanager
def listening(parts: Parts) -> Iterator[dict]:
    """Records the keyword arguments of the language model's calls inside."""
    arguments: dict = {}

    def look(_module, _args, kwargs):
        arguments.update(kwargs)

    hook = parts.language_model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield arguments
    finally:
        hook.remove()


@contextmanager
def _watching(parts: Parts) -> Iterator[list[Tensor]]:
    """max|h| / rms(h) of every token behind each of the layers L/4 … 3L/4, before DeepStack."""
    peaks: list[Tensor] = []

    def look(_module, _args, hidden):
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        largest = torch.linalg.vector_norm(hidden, ord=torch.inf, dim=-1, dtype=dtype)
        length = torch.linalg.vector_norm(hidden, dim=-1, dtype=dtype)
        peaks.append(largest * hidden.shape[-1] ** 0.5 / (length + torch.finfo(dtype).tiny))

    first = -(-parts.n_layers // 4)
    depths = range(first, max(first, 3 * parts.n_layers // 4) + 1)
    watched = [parts.layers[depth - 1].block for depth in depths]
    hooks = [layer.register_forward_hook(look) for layer in watched]
    try:
        yield peaks
    finally:
        for hook in hooks:
            hook.remove()


def _usual(peaks: Float[Tensor, "layer sequence token"]) -> Float[Tensor, "sequence token"]:
    """The largest value that at least half of the layers reach."""
    n_half = -(-len(peaks) // 2)
    return peaks.sort(dim=0, descending=True).values[n_half - 1]


def positions_of(arguments: dict) -> Int[Tensor, "3 sequence token"]:
    """Positions on three axes as the language model got them; where it got none, it counts.

    A family of one axis has the same number three times.
    """
    positions = arguments["position_ids"]
    if positions is None:
        n_sequences, n_tokens, _ = arguments["inputs_embeds"].shape
        counted = torch.arange(n_tokens, device=arguments["inputs_embeds"].device)
        return repeat(counted, "t -> xyz s t", xyz=3, s=n_sequences)
    return positions[-3:] if positions.ndim == 3 else repeat(positions, "s t -> xyz s t", xyz=3)
