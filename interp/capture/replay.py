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
from interp.capture.prefill import Prefill, Prefills, listening
from interp.capture.slots import Variants
from interp.capture.tracing import nnsight
from interp.model import families
from interp.model.linear import check_linear, has_constant, is_plain
from interp.model.parts import Parts
from interp.model.state import attending, undisturbed
from interp.vocabulary import BOUNDS, COMPONENTS

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
    ffn: list[Float[Tensor, "variant target d_model"]]
    final: Float[Tensor, "variant target d_model"]
    """The input of the final norm."""
    whole: list[Tensor] = field(default_factory=list)
    """Attention outputs for all sequences of the replay, which gradients can be
    asked for. `own` takes this sequence's part of them."""
    own: Callable[[Tensor], Tensor] = lambda whole: whole


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
        layers, final = _trace_rows(wrapped(model), arguments)
    all_played = []
    for s, (own_rows, chosen) in enumerate(zip(rows, variants, strict=True)):
        own = partial(_of_sequence, at=(s, len(rows)), sizes=(len(chosen.run), len(own_rows)))
        played = _as_replay(parts, layers, final, own, batch.n_padding[s])
        _check_finite(played)
        if are_sums_checked():
            _check_stream(played, own(content))
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
        SimpleNamespace(**{name: tracer[id(module)] for name, module in vars(layer).items()})
        for layer in parts.layers
    ]
    return Traced(around, tuple(layers), tracer[id(parts.final_norm)])


def _trace_rows(traced: Traced, arguments: dict) -> tuple[list, Tensor]:
    with traced.language_model.trace(**arguments):
        layers = nnsight.save([])
        for layer in traced.layers:
            own_values = layer.v_proj.output
            attention, weights = layer.attention.output
            layers.append((weights, own_values, attention, layer.ffn.output))
        final = nnsight.save(traced.final_norm.input)
    return layers, final


def _trace_residual(traced: Traced, arguments: dict, positions: Tensor) -> dict[str, Tensor]:
    with traced.language_model.trace(**arguments):
        layers = nnsight.save([])
        for layer in traced.layers:
            before = layer.block.input[0, positions]
            attention = layer.attention.output[0][0, positions]
            mid = layer.ffn_norm.input[0, positions]
            ffn = layer.ffn.output[0, positions]
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
    all_attention = [layer[2] for layer in layers]
    weights, own_values, attention, ffn = (
        [own(value) for value in column] for column in zip(*layers, strict=True)
    )
    own_values = [rearrange(v, "v t (kv d) -> v t kv d", kv=parts.n_kv_heads) for v in own_values]
    weights = [layer[..., n_padding:] for layer in weights]
    return Replay(weights, own_values, attention, ffn, own(final), all_attention, own)


def _check_finite(rows: Replay) -> None:
    if not rows.final.isfinite().all():
        for layer, (attention, ffn) in enumerate(zip(rows.attention, rows.ffn, strict=True)):
            for name, value in (("attention", attention), ("FFN", ffn)):
                if not value.isfinite().all():
                    raise ValueError(
                        f"expected finite activations, got NaN or infinity in the {name} output of "
                        f"layer {layer}; check the weights, or use float32 or bfloat16"
                    )
        raise ValueError("expected finite activations, got NaN or infinity in the content (1.1)")


@torch.no_grad()
def _check_stream(rows: Replay, content: Float[Tensor, "variant target content"]) -> None:
    """Raises ValueError unless content, attention and FFNs are all that is in the stream.

    Each row's largest gap, relative to the sum of its parts' largest entries: a hook that steers a
    layer, say, writes what no part has.
    """
    dtype = torch.promote_types(rows.final.dtype, torch.float32)
    total, scale = 0.0, 0.0
    entered = content.split(rows.final.shape[-1], dim=-1)
    for written in (*entered, *rows.attention, *rows.ffn):
        total = total + written.to(dtype)
        scale = scale + written.abs().amax(dim=-1).to(dtype)
    error = float(((total - rows.final.to(dtype)).abs().amax(dim=-1) / scale).max())
    bound = BOUNDS[str(rows.final.dtype).removeprefix("torch.")]
    if not error <= bound:
        raise ValueError(
            f"expected a residual stream of content, attention and FFN outputs, got one that "
            f"differs by {error:.2g} of them (bound {bound:g}); is a layer changed by hooks?"
        )
