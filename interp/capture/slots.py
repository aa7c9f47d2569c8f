"""The slots that replayed rows read: of one or several prefills, with interventions side by side.

A replay sends single rows through the model again; each attends to the keys and values that a
prefill left before it in its own sequence, and to its own. `Variants` says how every variant of a
replay departs from the clean run (METHODS.md 3):

    run        slots read from another prefill          node effects, coalitions, slot swaps
    is_cut     edges of which `scale` of the value is read and `fill` besides, the softmax as it is
    is_masked  edges cut out of the softmax too

The own row is never cut. Pure tensor code: `attend` knows neither nnsight nor a model.
"""

from dataclasses import dataclass, replace

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from interp.capture.prefill import Prefill, Prefills


@dataclass(frozen=True)
class Variants:
    """Interventions on what rows read; with the defaults of `clean`, none."""

    run: Int[Tensor, "variant token"]
    """Which prefill each slot is read from; 0 is the clean one."""
    is_cut: Bool[Tensor, "variant target token"]
    scale: Float[Tensor, " variant"]
    """Factor on the value that is read over a cut edge."""
    is_masked: bool = False
    """Whether cut edges get no weight and the others share it."""
    fill: list[Float[Tensor, "variant kv_head d_head"]] | None = None
    """By layer, the value read over cut edges in place of their own."""

    def part(self, targets: Int[Tensor, " part"]) -> "Variants":
        """The same interventions for some of the targets."""
        return replace(self, is_cut=self.is_cut[:, targets])


def clean(n_variants: int, n_targets: int, is_visible: Bool[Tensor, " token"]) -> Variants:
    """Variants without any intervention."""
    device, n_tokens = is_visible.device, len(is_visible)
    return Variants(
        run=torch.zeros(n_variants, n_tokens, dtype=torch.long, device=device),
        is_cut=torch.zeros(n_variants, n_targets, n_tokens, dtype=torch.bool, device=device),
        scale=torch.zeros(n_variants, device=device),
    )


def reading(run: Int[Tensor, "variant token"], n_targets: int) -> Variants:
    """Variants that read each slot from one of several prefills."""
    is_visible = torch.ones(run.shape[1], dtype=torch.bool, device=run.device)
    return replace(clean(len(run), n_targets, is_visible), run=run)


def cutting(
    is_cut: Bool[Tensor, "source_set target token"],
    mode: str = "zero",
    fill: list[Float[Tensor, "source_set kv_head d_head"]] | None = None,
) -> Variants:
    """The clean variant first, then one with each set's edges cut (METHODS.md 3.1)."""
    nothing = torch.zeros_like(is_cut[:1])
    variants = clean(1 + len(is_cut), is_cut.shape[1], nothing[0, 0])
    if fill is not None:
        fill = [torch.cat([torch.zeros_like(layer[:1]), layer]) for layer in fill]
    is_cut = torch.cat([nothing, is_cut])
    return replace(variants, is_cut=is_cut, is_masked=mode == "mask", fill=fill)


def scaled(is_cut: Bool[Tensor, "target token"], nodes: Float[Tensor, " node"]) -> Variants:
    """One variant per node t: of the values read over the edges, t is left (METHODS.md 3.4)."""
    variants = clean(len(nodes), len(is_cut), torch.zeros_like(is_cut[0]))
    return replace(variants, is_cut=repeat(is_cut, "t p -> v t p", v=len(nodes)), scale=nodes)


@dataclass(frozen=True)
class Slots:
    """Slots that the attention function reads in place of the context, by sequence."""

    runs: list[Prefills | Prefill]
    rows: Int[Tensor, "sequence target"]
    is_context: Bool[Tensor, "sequence target token"]
    """Before the row, and no padding."""
    run: Int[Tensor, "variant sequence token"]
    is_cut: Bool[Tensor, "variant sequence target token"]
    scale: Float[Tensor, " variant"]
    is_masked: bool
    fill: list[Float[Tensor, "variant sequence kv_head d_head"]] | None


def slots(
    runs: list[Prefills | Prefill], rows: list[Int[Tensor, " _"]], variants: list[Variants]
) -> Slots:
    """The slots of the rows of each sequence; edges that a row does not have are never cut.

    Every run has all sequences, padded alike.
    """
    assert len({run.keys[0].shape for run in runs}) == 1, "runs are of the same sequences"
    batch, n_targets = runs[0], max(len(one) for one in rows)
    n_tokens, n_variants = batch.keys[0].shape[2], max(len(one.run) for one in variants)
    moved = [one + n for one, n in zip(padded_rows(rows), batch.n_padding, strict=True)]
    at = torch.stack(moved)
    tokens = torch.arange(n_tokens, device=at.device)
    is_visible = [
        functional.pad(one.is_visible, (n, 0))
        for one, n in zip(batch.sequences, batch.n_padding, strict=True)
    ]
    is_context = (tokens < rearrange(at, "s t -> s t 1")) & rearrange(
        torch.stack(is_visible), "s p -> s 1 p"
    )
    is_cut = [
        functional.pad(
            one.is_cut,
            (n, 0, 0, n_targets - one.is_cut.shape[1], 0, n_variants - len(one.is_cut)),
        )
        for one, n in zip(variants, batch.n_padding, strict=True)
    ]
    run = [
        functional.pad(one.run, (n, 0, 0, n_variants - len(one.run)))
        for one, n in zip(variants, batch.n_padding, strict=True)
    ]
    most = max(variants, key=lambda one: len(one.run))
    return Slots(
        runs=runs,
        rows=at,
        is_context=is_context,
        run=torch.stack(run, dim=1),
        is_cut=torch.stack(is_cut, dim=1) & is_context,
        scale=most.scale,
        is_masked=most.is_masked,
        fill=_fills(variants, n_variants) if most.fill is not None else None,
    )


def padded_rows(rows: list[Int[Tensor, " _"]]) -> list[Int[Tensor, " _"]]:
    """As many rows for every sequence, the last one repeated."""
    longest = max(len(one) for one in rows)
    return [torch.cat([one, one[-1:].expand(longest - len(one))]) for one in rows]


def _fills(variants: list[Variants], n_variants: int) -> list[Tensor]:
    """By layer, what each variant of each sequence reads over cut edges."""
    return [
        torch.stack(
            [functional.pad(fill, (0, 0, 0, 0, 0, n_variants - len(fill))) for fill in layer], dim=1
        )
        for layer in zip(*(one.fill for one in variants), strict=True)
    ]


def attend(  # noqa: PLR0913, PLR0917 - transformers' signature
    module,
    query,
    key,
    value,
    attention_mask,
    scaling,
    dropout=0.0,
    replay=None,
    sliding_window=None,
    **_,
):
    """Attention of rows over slots and their own key and value, in float32 or better.

    Registered with transformers' AttentionInterface; `replay` are the `Slots`. Variants and
    sequences share the first axis. Returns the output, (variant·sequence target head d_head), and
    the attention rows, (variant·sequence target head token).
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    layer = module.layer_idx
    sizes = {"s": len(replay.rows), "kv": key.shape[1]}
    # Key/value heads stand in front of variants, as the products with the slots want them: the
    # attention rows are the largest tensor here, and each copy of them counts.
    grouped = rearrange(query.to(dtype) * scaling, "(v s) (kv g) t d -> s kv v g t d", **sizes)
    key, value = (
        rearrange(own.to(dtype), "(v s) kv t d -> s kv v 1 t d", **sizes) for own in (key, value)
    )
    scores = _scores(grouped, replay, layer)
    own = rearrange(replay.rows, "s t -> s 1 1 1 t 1").expand(*scores.shape[:-1], 1)
    is_cut = rearrange(replay.is_cut, "v s t p -> s 1 v 1 t p")
    is_context = rearrange(_in_reach(replay, sliding_window), "s t p -> s 1 1 1 t p")
    hidden = ~is_context | is_cut if replay.is_masked else ~is_context
    own_score = (grouped * key).sum(-1, keepdim=True)
    scores = scores.masked_fill_(hidden, -torch.inf).scatter_(-1, own, own_score)
    weights = scores.softmax(dim=-1)
    own_weight = weights.gather(-1, own)
    left = torch.where(is_cut, rearrange(replay.scale.to(dtype), "v -> v 1 1 1"), 1.0)
    left = left * is_context  # what the own row reads comes last
    read = _read(weights * left, replay, layer)
    if replay.fill is not None:
        freed = (weights * is_cut).sum(dim=-1, keepdim=True)
        fill = replay.fill[layer].to(dtype)
        read = read + freed * rearrange(fill, "v s kv d -> s kv v 1 1 d")
    read = read + own_weight * value
    output = rearrange(read, "s kv v g t d -> (v s) t (kv g) d").to(query.dtype)
    return output, rearrange(weights, "s kv v g t p -> (v s) t (kv g) p")


def _in_reach(replay: Slots, window: int | None) -> Bool[Tensor, "sequence target token"]:
    """The slots before each row that a layer's heads see."""
    if window is None:
        return replay.is_context
    tokens = torch.arange(replay.is_context.shape[-1], device=replay.rows.device)
    return replay.is_context & (replay.rows[..., None] - tokens < window)


def _scores(grouped: Tensor, replay: Slots, layer: int) -> Tensor:
    """Scores of the rows' queries against the keys that each variant reads."""
    by_head = rearrange(grouped, "s kv v g t d -> s kv (v g t) d")
    sizes = {"v": grouped.shape[2], "t": grouped.shape[4]}
    scores = None
    for number, run in enumerate(replay.runs):
        run_scores = by_head @ run.keys[layer].to(grouped.dtype).mT
        run_scores = rearrange(run_scores, "s kv (v g t) p -> s kv v g t p", **sizes)
        is_read = rearrange(replay.run == number, "v s p -> s 1 v 1 1 p")
        scores = run_scores if scores is None else torch.where(is_read, run_scores, scores)
    return scores


def _read(weights: Tensor, replay: Slots, layer: int) -> Tensor:
    """Weighted values of the slots that each variant reads."""
    sizes = {"v": weights.shape[2], "t": weights.shape[4]}
    read = None
    for number, run in enumerate(replay.runs):
        run_weights = weights
        if len(replay.runs) > 1:
            is_read = rearrange(replay.run == number, "v s p -> s 1 v 1 1 p")
            run_weights = weights * is_read
        by_head = rearrange(run_weights, "s kv v g t p -> s kv (v g t) p")
        run_read = by_head @ run.values[layer].to(weights.dtype)
        read = run_read if read is None else read + run_read
    return rearrange(read, "s kv (v g t) d -> s kv v g t d", **sizes)
