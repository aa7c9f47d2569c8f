"""Prefill once, replay the rows: every tensor that the algebra needs, from the model's own modules.

1. `prefill` is the model's own forward, whatever its attention implementation, with its cache. One
   pre-hook reads what the language model was given; nothing else is touched.
2. `replay` sends only the queried rows through the *same* modules again. A registered attention
   function lets each row attend to the prefill's keys and values before it and to its own. With
   nothing changed this is the clean forward at those rows; variants of it, each with some edges
   cut, ride in one batch. One nnsight trace of this small forward captures what is needed.

Two rows never meet in a replay, so a position can be queried any number of times. State travels as
a keyword argument down to the attention function: no globals, re-entrant. Everything runs in eval
mode and the caller's state comes back as it was. The only file that imports nnsight.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import nnsight
import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface

from interp.checks import check_inputs
from interp.model import Parts, parts, undisturbed
from interp.readout import check_linear

REPLAY = "interp_replay"
_WRAPPER = "_interp_nnsight"


@dataclass(frozen=True)
class Prefill:
    """One clean forward of one sequence: what rows can read, and what it put out."""

    keys: list[Float[Tensor, "1 kv_head token d_head"]]
    """By layer, rotary embedding applied."""
    values: list[Float[Tensor, "1 kv_head token d_head"]]
    """By layer, value bias included."""
    embeddings: Float[Tensor, "token d_model"]
    """h⁰: what enters the first layer."""
    position_ids: Int[Tensor, "3 token"]
    is_visible: Bool[Tensor, " token"]
    """False on padding."""
    logits: Float[Tensor, "target vocabulary"]
    """The model's own output at the queried rows."""


@dataclass(frozen=True)
class Replay:
    """A replay of rows in several variants; everything by layer where it is a list."""

    weights: list[Float[Tensor, "variant target head token"]]
    """Attention rows, summing to 1, the own row's weight at its own position. Edges that were cut
    keep their weight here: a cut leaves out the value, not the weight."""
    own_values: list[Float[Tensor, "variant target kv_head d_head"]]
    """Of each row itself, value bias included."""
    attention: list[Float[Tensor, "variant target d_model"]]
    ffn: list[Float[Tensor, "variant target d_model"]]
    final: Float[Tensor, "variant target d_model"]
    """The input of the final norm."""


@dataclass(frozen=True)
class _Slots:
    """What the attention function reads in place of the context."""

    keys: list[Tensor]
    values: list[Tensor]
    rows: Int[Tensor, " target"]
    is_context: Bool[Tensor, "target token"]
    is_cut: Bool[Tensor, "variant target token"]


# --------------------------------------------------------------------------------------- the two


def prefill(model: nn.Module, batch, positions: Int[Tensor, " target"]) -> Prefill:
    """The model's own forward over one sequence, its cache kept, logits only at `positions`.

    Raises:
        ValueError: inputs that do not belong together (see `checks`).
    """
    where = parts(model)
    check_inputs(where, batch)
    seen = {}

    def look(_module, _args, kwargs):
        seen.update(kwargs)

    unique, back = torch.unique(positions, return_inverse=True)
    with undisturbed(model), torch.no_grad():
        hook = where.language_model.register_forward_pre_hook(look, with_kwargs=True)
        try:
            out = model(**batch, use_cache=True, logits_to_keep=unique)
        finally:
            hook.remove()
    layers = out.past_key_values.layers
    return Prefill(
        keys=[layer.keys for layer in layers],
        values=[layer.values for layer in layers],
        embeddings=seen["inputs_embeds"][0],
        position_ids=_positions(seen),
        is_visible=batch["attention_mask"][0].bool(),
        logits=out.logits[0][back],
    )


def replay(
    model: nn.Module,
    context: Prefill,
    rows: Int[Tensor, " target"],
    cuts: Bool[Tensor, "variant target token"] | None = None,
) -> Replay:
    """The rows once more, in one variant for each entry of `cuts` (without: one, clean).

    A cut edge's value is left out of the sum and its weight is kept, without renormalising; the own
    edge and edges to rows that cannot be seen are never cut (METHODS.md 3.1).

    Raises:
        ValueError: non-finite activations, naming the layer.
    """
    where = parts(model)
    n_tokens = len(context.is_visible)
    tokens = torch.arange(n_tokens, device=rows.device)
    if cuts is None:
        cuts = torch.zeros(1, len(rows), n_tokens, dtype=torch.bool, device=rows.device)
    is_context = (tokens < rearrange(rows, "t -> t 1")) & context.is_visible
    slots = _Slots(context.keys, context.values, rows, is_context, cuts & is_context)
    given = {
        "inputs_embeds": repeat(context.embeddings[rows], "t d -> v t d", v=len(cuts)),
        "position_ids": repeat(context.position_ids[:, rows], "xyz t -> xyz v t", v=len(cuts)),
        "attention_mask": {"full_attention": None},
        "use_cache": False,
        "replay": slots,
    }
    with undisturbed(model), _replaying(where.language_model):
        traced = _trace_rows(wrapped(model), given)
    return _checked(_as_replay(where, *traced))


def _positions(seen: dict) -> Int[Tensor, "3 token"]:
    """Three-axis positions as the language model got them; for text alone it counts by itself."""
    if seen["position_ids"] is None:
        embeddings = seen["inputs_embeds"]
        return repeat(
            torch.arange(embeddings.shape[1], device=embeddings.device), "t -> xyz t", xyz=3
        )
    return seen["position_ids"][-3:, 0]


def residual(
    model: nn.Module, batch, positions: Int[Tensor, " position"]
) -> dict[str, Float[Tensor, "layer position d_model"]]:
    """The traced residual stream of the model's own forward, at some positions.

    resid_pre + attn_out = resid_mid and resid_mid + ffn_out = resid_post, up to the rounding of the
    model's dtype.
    """
    where = parts(model)
    check_inputs(where, batch)
    seen = {}

    def look(_module, _args, kwargs):
        seen.update(kwargs)

    with undisturbed(model), torch.no_grad():
        hook = where.language_model.register_forward_pre_hook(look, with_kwargs=True)
        try:
            model(**batch, use_cache=False, logits_to_keep=1)
        finally:
            hook.remove()
        seen["use_cache"] = False
        return _trace_residual(wrapped(model), seen, positions)


# ------------------------------------------------------------------------------- attention of rows


def replay_attention(  # noqa: PLR0913, PLR0917 - transformers' signature
    module, query, key, value, attention_mask, scaling, dropout=0.0, replay=None, **_
):
    """Attention of rows over the prefill's slots before them and their own.

    Rows in float32 or better. Returns (variant target head d_head) and the attention rows
    (variant target head token).
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    layer, n_kv = module.layer_idx, key.shape[1]
    keys, values = (slots[layer][0].to(dtype) for slots in (replay.keys, replay.values))
    grouped = rearrange(query.to(dtype) * scaling, "v (kv g) t d -> v kv g t d", kv=n_kv)
    by_head = rearrange(grouped, "v kv g t d -> kv (v g t) d")
    scores = rearrange(
        by_head @ keys.transpose(-1, -2),
        "kv (v g t) p -> v kv g t p",
        v=query.shape[0],
        t=query.shape[2],
    )
    own_score = (grouped * rearrange(key.to(dtype), "v kv t d -> v kv 1 t d")).sum(-1, keepdim=True)
    own = torch.zeros_like(replay.is_context).scatter(1, rearrange(replay.rows, "t -> t 1"), True)
    scores = torch.where(own, own_score, scores.masked_fill(~replay.is_context, -torch.inf))
    weights = scores.softmax(dim=-1)
    kept = weights.masked_fill(rearrange(replay.is_cut | own, "v t p -> v 1 1 t p"), 0)
    read = rearrange(kept, "v kv g t p -> kv (v g t) p") @ values
    read = rearrange(read, "kv (v g t) d -> v kv g t d", v=query.shape[0], t=query.shape[2])
    own_weight = (weights * own).sum(-1, keepdim=True)
    read = read + own_weight * rearrange(value.to(dtype), "v kv t d -> v kv 1 t d")
    output = rearrange(read, "v kv g t d -> v t (kv g) d").to(query.dtype)
    return output, rearrange(weights, "v kv g t p -> v t (kv g) p")


AttentionInterface.register(REPLAY, replay_attention)


@contextmanager
def _replaying(language_model: nn.Module) -> Iterator[None]:
    """Switches the language model alone to `replay_attention`, and back.

    `set_attn_implementation` would change the vision tower too, and a mixed model would not come
    back as it was.
    """
    config = language_model.config
    before = config._attn_implementation
    config._attn_implementation = REPLAY
    try:
        yield
    finally:
        config._attn_implementation = before


# ------------------------------------------------------------------------------------------ traces


def wrapped(model: nn.Module) -> nnsight.NNsight:
    """nnsight around the language model, kept with it, and made anew when its modules changed.

    Wrapped before an adapter was added, nnsight would capture the base projection without a word.

    Raises:
        ValueError: an adapter that is not linear.
    """
    where = parts(model)
    language_model = where.language_model
    known = language_model.__dict__.get(_WRAPPER)
    modules = [id(module) for module in language_model.modules()]
    if known is None or known[1] != modules:
        for number, layer in enumerate(language_model.layers):
            check_linear(layer.self_attn.v_proj, f"layer {number} v_proj")
            check_linear(layer.self_attn.o_proj, f"layer {number} o_proj")
        check_linear(where.output_embedding, "the output embedding")
        known = (nnsight.NNsight(language_model), modules)
        language_model.__dict__[_WRAPPER] = known
    return known[0]


def _trace_rows(envoy: nnsight.NNsight, given: dict) -> tuple[list, Tensor]:
    with envoy.trace(**given):
        layers = nnsight.save([])
        for layer in envoy.layers:
            own_values = layer.self_attn.v_proj.output
            attention, weights = layer.self_attn.output
            layers.append((weights, own_values, attention, layer.mlp.output))
        final = envoy.norm.input.save()
    return layers, final


def _trace_residual(envoy: nnsight.NNsight, given: dict, positions: Tensor) -> dict[str, Tensor]:
    with envoy.trace(**given):
        found = nnsight.save([])
        for layer in envoy.layers:
            before = layer.input[0, positions]
            attention = layer.self_attn.output[0][0, positions]
            mid = layer.post_attention_layernorm.input[0, positions]
            ffn = layer.mlp.output[0, positions]
            after = layer.output[0, positions]
            found.append((before, attention, mid, ffn, after))
    names = ("resid_pre", "attn_out", "resid_mid", "ffn_out", "resid_post")
    return {n: torch.stack(c) for n, c in zip(names, zip(*found, strict=True), strict=True)}


def _as_replay(where: Parts, layers: list, final: Tensor) -> Replay:
    weights, own_values, attention, ffn = (list(column) for column in zip(*layers, strict=True))
    own_values = [rearrange(v, "v t (kv d) -> v t kv d", kv=where.n_kv_heads) for v in own_values]
    return Replay(weights, own_values, attention, ffn, final)


def _checked(rows: Replay) -> Replay:
    if not rows.final.isfinite().all():
        for layer, (attention, ffn) in enumerate(zip(rows.attention, rows.ffn, strict=True)):
            for name, value in (("attention", attention), ("FFN", ffn)):
                if not value.isfinite().all():
                    raise ValueError(
                        f"expected finite activations, got NaN or infinity in the {name} output of "
                        f"layer {layer}; check the weights, or use float32 or bfloat16"
                    )
        raise ValueError("expected finite activations, got NaN or infinity in the embeddings")
    return rows
