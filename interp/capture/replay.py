"""Replay the rows: every tensor that the algebra needs, from the model's own modules.

A prefill has left the keys and values of every layer. `replay` sends only the queried rows through
the *same* modules again: a registered attention function (`rows`) lets each row attend to those
keys and values before it and to its own. With nothing changed this is the clean forward at those
rows; variants of it ride in one batch. One nnsight trace of this small forward captures what is
needed.

Two rows never meet in a replay, so a position can be queried any number of times. State travels as
a keyword argument down to the attention function: no globals, re-entrant. Everything runs in eval
mode and the caller's state comes back as it was.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface

from interp.capture import slots as row_reading
from interp.capture.checks import are_sums_checked, check_inputs
from interp.capture.conservation import (
    check_finite,
    check_post_norms,
    check_rows,
    check_stream,
)
from interp.capture.prefill import Prefill, Prefills, listening
from interp.capture.slots import Variants
from interp.capture.tracing import nnsight
from interp.model import families
from interp.model.linear import check_linear, has_constant, is_plain
from interp.model.parts import Parts
from interp.model.state import attending, undisturbed
from interp.vocabulary import COMPONENTS

REPLAY = "interp_replay"
_WRAPPER = "_interp_nnsight"

AttentionInterface.register(REPLAY, row_reading.attend)


@dataclass(frozen=True)
class Replay:
    """A replay of rows in several variants; everything by layer where it is a list."""

    weights: list[Float[Tensor, "variant target head token"]]
    """Attention rows, summing to 1, the own row's weight at its own position. Edges that were cut
    keep their weight here: a cut leaves out the value, not the weight."""
    own_values: list[Float[Tensor, "variant target kv_head d_head"]]
    """Values of each row itself, value bias included."""
    attention: list[Float[Tensor, "variant target d_model"]]
    """What is written to the stream, behind a norm where there is one; so for FFNs."""
    ffn: list[Float[Tensor, "variant target d_model"]]
    final: Float[Tensor, "variant target d_model"]
    """The input of the final norm."""
    scales: list[Float[Tensor, "variant target"]] | None = None
    """1 / rms of what a norm behind attention is given; None without such norms."""
    whole: list[Tensor] = field(default_factory=list)
    """Attention's own outputs for all sequences of the replay, which gradients can be
    asked for. `own` takes this sequence's part of them."""
    own: Callable[[Tensor], Tensor] = lambda whole: whole

    def shares(self, layer: int) -> Float[Tensor, "variant target head token"]:
        """α, and what a norm behind attention multiplies each row's whole sum with (METHODS.md 1).

        What a source writes is this times γ' ⊙ W_o v.
        """
        weights = self.weights[layer]
        return weights if self.scales is None else weights * self.scales[layer][..., None, None]

    def of(self, chosen: Callable[[Tensor], Tensor]) -> "Replay":
        """Some of the variants or targets: `chosen` picks them out of each tensor."""
        columns = (self.weights, self.own_values, self.attention, self.ffn)
        scales = None if self.scales is None else [chosen(one) for one in self.scales]
        picked = ([chosen(one) for one in column] for column in columns)
        return Replay(*picked, chosen(self.final), scales)


def replay(
    model: nn.Module,
    context: Prefill,
    rows: Int[Tensor, " target"],
    variants: Variants | None = None,
    others: tuple[Prefill, ...] = (),
) -> Replay:
    """The rows once more, in one variant for each entry of `variants` (without: one, clean).

    Args:
        model, context, rows: the clean run and the rows of it to repeat.
        variants: how each variant departs from the clean run; see `rows`.
        others: prefills that variants read slots from, numbered from 1.

    Raises:
        ValueError: non-finite activations, naming the layer.
    """
    alone = Prefills(context.keys, context.values, [context], [0])
    variants = None if variants is None else [variants]
    return replays(model, alone, [rows], variants, others)[0]


def replays(
    model: nn.Module,
    batch: Prefills,
    rows: list[Int[Tensor, " _"]],
    variants: list[Variants] | None = None,
    others: tuple[Prefills | Prefill, ...] = (),
) -> list[Replay]:
    """`replay` of rows of several sequences at once, each as if it were alone.

    Args:
        model, variants, others: as for `replay`; `variants` by sequence, all of one kind, and
            `others` with the same sequences, padded alike.
        batch, rows: the clean runs, and the rows of each to repeat, counted without padding.

    Raises:
        ValueError: non-finite activations, naming the layer.
    """
    parts, pairs = families.parts(model), list(zip(batch.sequences, rows, strict=True))
    if variants is None:
        variants = [row_reading.clean(1, len(mine), one.is_visible) for one, mine in pairs]
    check_rows(parts, pairs)
    slots = row_reading.slots([batch, *others], rows, variants)
    repeated = list(zip(batch.sequences, row_reading.padded_rows(rows), strict=True))
    content = torch.stack([one.content[mine] for one, mine in repeated])
    positions = torch.stack([one.position_ids[:, mine] for one, mine in repeated], dim=1)
    n_variants = len(slots.run)
    content = repeat(content, "s t c -> (v s) t c", v=n_variants)
    # With gradients on, everything downstream has to know of them, frozen weights or not.
    entering = parts.entering(content.requires_grad_() if torch.is_grad_enabled() else content)
    arguments = entering | {
        "position_ids": parts.placed(repeat(positions, "xyz s t -> xyz (v s) t", v=n_variants)),
        "attention_mask": None,
        "use_cache": False,
        "replay": slots,
    }
    with undisturbed(model), attending(parts.language_model, REPLAY):
        layers, final = _trace_rows(wrapped(model), parts.masked(arguments))
    all_played = []
    for s, (own_rows, chosen) in enumerate(zip(rows, variants, strict=True)):
        own = partial(_of_sequence, at=(s, len(rows)), sizes=(len(chosen.run), len(own_rows)))
        played = _as_replay(parts, layers, final, own, batch.n_padding[s])
        check_finite(played.attention, played.ffn, played.final)
        if are_sums_checked():
            check_stream(
                [*own(content).split(final.shape[-1], -1), *played.attention, *played.ffn],
                played.final,
            )
            check_post_norms(parts, played.scales or [], map(own, played.whole), played.attention)
        all_played.append(played)
    return all_played


def residual(
    model: nn.Module, batch, positions: Int[Tensor, " position"]
) -> dict[str, Float[Tensor, "layer position d_model"]]:
    """The traced residual stream of the model's own forward, at some positions.

    resid_pre + attn_out = resid_mid, resid_mid + ffn_out = resid_post, and resid_post + injected is
    the next layer's resid_pre, up to the rounding of the model's dtype. `injected` has the first
    layers alone: what is added behind them, 0 but for DeepStack's visual tokens.
    """
    parts = families.parts(model)
    check_inputs(parts, batch)
    with undisturbed(model), torch.no_grad():
        with listening(parts) as arguments:
            model(**batch, use_cache=False, logits_to_keep=1)
        arguments["use_cache"] = False
        stream = _trace_residual(wrapped(model), arguments, positions)
        content = parts.entered(arguments)[0, positions]
        levels = rearrange(content, "t (level d) -> level t d", d=stream["resid_pre"].shape[-1])
        return stream | {"injected": levels[1:]}


# ------------------------------------------------------------------------------------------ traces


@dataclass(frozen=True)
class Traced:
    """nnsight around the language model, and in place of its parts what traces them."""

    language_model: nnsight.NNsight
    layers: tuple[SimpleNamespace, ...]
    """Each with the names of `Layer`."""
    final_norm: nnsight.Envoy


class Kept:
    """nnsight around a model, kept between calls; a copy or a pickle of the model makes its own."""

    traced: Traced | None = None
    modules: list | None = None

    def __reduce__(self):
        return Kept, ()


def wrapped(model: nn.Module) -> Traced:
    """nnsight around the language model, kept with it, and made anew when its modules changed.

    Wrapped before an adapter was added, nnsight would capture the base projection without a word.

    Raises:
        ValueError: an adapter that is not linear, or an output embedding with a bias.
    """
    parts = families.parts(model)
    language_model = parts.language_model
    kept = language_model.__dict__.setdefault(_WRAPPER, Kept())
    linear = [(f"layer {n} v_proj", layer.v_proj) for n, layer in enumerate(parts.layers)]
    linear += [(f"layer {n} o_proj", layer.o_proj) for n, layer in enumerate(parts.layers)]
    linear.append(("the output embedding", parts.output_embedding))
    modules = [id(module) for module in language_model.modules()]
    modules += [is_plain(module) for _, module in linear]
    if kept.modules != modules:
        for name, module in linear:
            check_linear(module, name)
        kept.traced, kept.modules = _traced(parts), modules
    for number, layer in enumerate(parts.layers):
        if layer.attention_post_norm and (has_constant(layer.v_proj) or has_constant(layer.o_proj)):
            raise ValueError(
                f"expected no biases in front of the norm behind attention, got one in layer "
                f"{number} (attention_bias or lora_bias?); train without it"
            )
    if has_constant(parts.output_embedding):
        raise ValueError(
            "expected an output embedding without a bias, got one (lora_bias?), which no part of a "
            "logit has; merge it into the weights or train without it"
        )
    return kept.traced


def _traced(parts: Parts) -> Traced:
    around = nnsight.NNsight(parts.language_model)
    tracer = {id(envoy._module): envoy for envoy in around.modules()}
    layers = [
        SimpleNamespace(
            **{name: module and tracer[id(module)] for name, module in vars(layer).items()}
        )
        for layer in parts.layers
    ]
    return Traced(around, tuple(layers), tracer[id(parts.final_norm)])


def _trace_rows(traced: Traced, arguments: dict) -> tuple[list, Tensor]:
    with traced.language_model.trace(**arguments):
        layers = nnsight.save([])
        for layer in traced.layers:
            own_values = layer.v_proj.output
            whole, weights = layer.attention.output
            attention = layer.attention_post_norm.output if layer.attention_post_norm else whole
            ffn = (layer.ffn_post_norm or layer.ffn).output
            layers.append((weights, own_values, attention, ffn, whole))
        final = nnsight.save(traced.final_norm.input)
    return layers, final


def _trace_residual(traced: Traced, arguments: dict, positions: Tensor) -> dict[str, Tensor]:
    with traced.language_model.trace(**arguments):
        layers = nnsight.save([])
        for layer in traced.layers:
            before = layer.block.input[0, positions]
            post_norm = layer.attention_post_norm
            attention = post_norm.output if post_norm else layer.attention.output[0]
            attention = attention[0, positions]
            mid = layer.ffn_norm.input[0, positions]
            ffn = (layer.ffn_post_norm or layer.ffn).output[0, positions]
            after = layer.block.output[0, positions]
            layers.append((before, attention, mid, ffn, after))
    written = COMPONENTS[:-1]  # no module writes the last
    columns = zip(written, zip(*layers, strict=True), strict=True)
    return {name: torch.stack(column) for name, column in columns}


def _of_sequence(value: Tensor, at: tuple[int, int], sizes: tuple[int, int]) -> Tensor:
    """The variants and targets of one sequence out of several."""
    number, n_sequences = at
    if n_sequences == 1:
        return value
    by_sequence = rearrange(value, "(v s) t ... -> s v t ...", s=n_sequences)
    return by_sequence[number, : sizes[0], : sizes[1]]


def _as_replay(parts: Parts, layers: list, final: Tensor, own: Callable, n_padding: int) -> Replay:
    all_whole = [layer[4] for layer in layers]
    weights, own_values, attention, ffn, whole = (
        [own(value) for value in column] for column in zip(*layers, strict=True)
    )
    scales = None
    if parts.layers[0].attention_post_norm:
        scales = [_inverse_rms(one.detach(), parts.epsilon) for one in whole]
    own_values = [rearrange(v, "v t (kv d) -> v t kv d", kv=parts.n_kv_heads) for v in own_values]
    weights = [layer[..., n_padding:] for layer in weights]
    return Replay(weights, own_values, attention, ffn, own(final), scales, all_whole, own)


def _inverse_rms(x: Float[Tensor, "*rows d_model"], epsilon: float) -> Float[Tensor, "*rows"]:
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return torch.rsqrt(x.square().mean(dim=-1) + epsilon)
