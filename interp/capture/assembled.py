"""Prefills put together out of what other forwards left behind: a generation, a trainer's own.

A `Run` is one sequence of such a forward. Where it has queries and final states of its rows, their
rows of attention are computed out of them and the keys, and nothing is replayed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import pad

from interp.capture.attending import attention_rows, turned
from interp.capture.prefill import Prefill, Prefills
from interp.capture.replay import Replay
from interp.model.parts import Parts


@dataclass(frozen=True)
class Rows:
    """Rows that a forward has kept something of: `first`, `first` + 1, … of a sequence."""

    first: int
    n_rows: int
    queries: Callable[[int, list[int]], Float[Tensor, "row head_d_head"]]
    """Those of a layer, in front of norm and rotary embedding; rows are counted from `first`."""
    rotary: Callable[[list[int]], tuple[Tensor, Tensor]]
    """Cosines and sines, (row, d_head)."""
    final: Callable[[list[int]], Float[Tensor, "row d_model"]]
    """The input of the final norm."""


@dataclass(frozen=True)
class Run:
    """One sequence without padding, maybe without its last token, which nothing reads."""

    keys: list[Float[Tensor, "kv_head token d_head"]]
    """By layer, rotary embedding applied."""
    values: list[Float[Tensor, "kv_head token d_head"]]
    content: Float[Tensor, "token content"]
    positions: Int[Tensor, "3 token"]
    rows: Rows | None = None


def assembled(parts: Parts, runs: list[Run], n_tokens: list[int]) -> Prefills:
    """Sequences as `interp.capture.prefill.prefills` gives them: padded on the left.

    There are no logits, and which tokens are sinks is not known.

    Args:
        parts: the model's parts.
        runs: one for each sequence.
        n_tokens: of each sequence; a run that lacks the last one gets zeros there.
    """
    longest = max(n_tokens)
    n_padding = [longest - n for n in n_tokens]

    def together(tensors: list[Shaped[Tensor, "*n _ d"]]) -> Shaped[Tensor, "sequence *n _ d"]:
        return torch.stack(
            [
                pad(one, (0, 0, left, n - one.shape[-2]))
                for one, n, left in zip(tensors, n_tokens, n_padding, strict=True)
            ]
        )

    keys = [together(list(layer)) for layer in zip(*(run.keys for run in runs), strict=True)]
    values = [together(list(layer)) for layer in zip(*(run.values for run in runs), strict=True)]
    content = together([run.content for run in runs])
    positions = rearrange(together([run.positions.T for run in runs]), "s t xyz -> xyz s t")
    sequences = [
        Prefill(
            keys=[layer[s : s + 1, :, n:] for layer in keys],
            values=[layer[s : s + 1, :, n:] for layer in values],
            content=content[s, n:],
            position_ids=positions[:, s, n:],
            is_visible=torch.ones(longest - n, dtype=torch.bool, device=content.device),
            logits=None,
            given=parts.entering(content[s : s + 1, n:]),
            peaks=None,
        )
        for s, n in enumerate(n_padding)
    ]

    def kept(rows: list[Int[Tensor, " _"]]) -> list[Replay] | None:
        # Neither what a norm behind attention divides by nor where a window ends is in a run.
        is_plain = not (parts.layers[0].attention_post_norm or parts.has_windows)
        if not is_plain or not all(map(_has, runs, rows)):
            return None
        return [_read(parts, *each) for each in zip(runs, sequences, rows, strict=True)]

    return Prefills(keys, values, sequences, n_padding, kept)


def _has(run: Run, rows: Int[Tensor, " _"]) -> bool:
    if run.rows is None:
        return False
    first, last = run.rows.first, run.rows.first + run.rows.n_rows - 1
    return len(rows) == 0 or (first <= int(rows.min()) and int(rows.max()) <= last)


def _read(parts: Parts, run: Run, context: Prefill, rows: Int[Tensor, " row"]) -> Replay:
    """A clean replay of rows; what attention and FFN wrote is not in it."""
    which = (rows - run.rows.first).tolist()
    cos, sin = run.rows.rotary(which)
    tokens = torch.arange(len(context.is_visible), device=rows.device)
    is_seen = rearrange(tokens <= rearrange(rows, "r -> r 1"), "r t -> 1 r t")
    weights = []
    for n, layer in enumerate(parts.layers):
        queries = turned(run.rows.queries(n, which)[None], layer.q_norm, (cos[None], sin[None]))
        scaling = layer.attention.scaling
        weights.append(attention_rows(queries, context.keys[n], is_seen, scaling))
    own_values = [rearrange(one[:, :, rows], "v kv t d -> v t kv d") for one in context.values]
    return Replay(weights, own_values, [], [], run.rows.final(which)[None])
