"""What replayed rows read: slots of one or several prefills, with interventions side by side.

A replay sends single rows through the model again; each attends to the keys and values that a
prefill left before it, and to its own. `Variants` says how every variant of a replay departs from
the clean run (METHODS.md 3):

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

from interp.prefill import Prefill

CUT_MODES = ("zero", "mean", "mask")


@dataclass(frozen=True)
class Variants:
    """Interventions on what rows read; with the defaults of `clean`, none."""

    run: Int[Tensor, "variant token"]
    """Which prefill each slot is read from; 0 is the clean one."""
    is_cut: Bool[Tensor, "variant target token"]
    scale: Float[Tensor, " variant"]
    """What is left of the value read over a cut edge."""
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
    """What the attention function reads in place of the context."""

    runs: list[Prefill]
    rows: Int[Tensor, " target"]
    is_context: Bool[Tensor, "target token"]
    """Before the row, and no padding."""
    variants: Variants


def slots(runs: list[Prefill], rows: Int[Tensor, " target"], variants: Variants) -> Slots:
    """The slots of some rows; edges that a row does not have are never cut."""
    tokens = torch.arange(len(runs[0].is_visible), device=rows.device)
    is_context = (tokens < rearrange(rows, "t -> t 1")) & runs[0].is_visible
    variants = replace(variants, is_cut=variants.is_cut & is_context)
    return Slots(runs, rows, is_context, variants)


def attend(  # noqa: PLR0913, PLR0917 - transformers' signature
    module, query, key, value, attention_mask, scaling, dropout=0.0, replay=None, **_
):
    """Attention of rows over slots and their own key and value, in float32 or better.

    Registered with transformers' AttentionInterface; `replay` are the `Slots`. Returns the output,
    (variant target head d_head), and the attention rows, (variant target head token).
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    n_kv, layer, variants = key.shape[1], module.layer_idx, replay.variants
    sizes = {"v": query.shape[0], "t": query.shape[2]}
    grouped = rearrange(query.to(dtype) * scaling, "v (kv g) t d -> v kv g t d", kv=n_kv)
    scores = _scores(grouped, replay, layer, sizes)
    own_score = (grouped * rearrange(key.to(dtype), "v kv t d -> v kv 1 t d")).sum(-1, keepdim=True)
    own = rearrange(replay.rows, "t -> 1 1 1 t 1").expand(*scores.shape[:-1], 1)
    is_cut = rearrange(variants.is_cut, "v t p -> v 1 1 t p")
    hidden = ~replay.is_context | is_cut if variants.is_masked else ~replay.is_context
    scores = scores.masked_fill(hidden, -torch.inf).scatter_(-1, own, own_score)
    weights = scores.softmax(dim=-1)
    own_weight = weights.gather(-1, own)
    left = torch.where(is_cut, rearrange(variants.scale.to(dtype), "v -> v 1 1 1 1"), 1.0)
    left = left * replay.is_context  # what the own row reads comes last
    read = _read(weights * left, replay, layer, sizes)
    if variants.fill is not None:
        freed = (weights * is_cut).sum(dim=-1, keepdim=True)
        read = read + freed * rearrange(variants.fill[layer].to(dtype), "v kv d -> v kv 1 1 d")
    read = read + own_weight * rearrange(value.to(dtype), "v kv t d -> v kv 1 t d")
    output = rearrange(read, "v kv g t d -> v t (kv g) d").to(query.dtype)
    return output, rearrange(weights, "v kv g t p -> v t (kv g) p")


def _scores(grouped: Tensor, replay: Slots, layer: int, sizes: dict) -> Tensor:
    """Scores of the rows' queries against the keys that each variant reads."""
    by_head = rearrange(grouped, "v kv g t d -> kv (v g t) d")
    scores = None
    for number, run in enumerate(replay.runs):
        found = by_head @ run.keys[layer][0].to(grouped.dtype).mT
        found = rearrange(found, "kv (v g t) p -> v kv g t p", **sizes)
        is_read = rearrange(replay.variants.run == number, "v p -> v 1 1 1 p")
        scores = found if scores is None else torch.where(is_read, found, scores)
    return scores


def _read(kept: Tensor, replay: Slots, layer: int, sizes: dict) -> Tensor:
    """Weighted values of the slots that each variant reads."""
    read = None
    for number, run in enumerate(replay.runs):
        mine = kept
        if len(replay.runs) > 1:
            mine = kept * rearrange(replay.variants.run == number, "v p -> v 1 1 1 p")
        by_head = rearrange(mine, "v kv g t p -> kv (v g t) p")
        found = by_head @ run.values[layer][0].to(kept.dtype)
        read = found if read is None else read + found
    return rearrange(read, "kv (v g t) d -> v kv g t d", **sizes)
