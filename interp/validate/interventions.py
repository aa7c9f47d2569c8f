"""Total effects against forwards that are interfered with (METHODS.md 6, oracle 2).

Nothing here replays. Over the whole sequence, with all rows: an edge is cut by a four-dimensional
mask, or its values are taken out of what eager attention has put out; content is replaced by other
pixels.
"""

from contextlib import ExitStack
from functools import partial

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp import extract
from interp.algebra.effects import cut_masks
from interp.algebra.readout import gauge_logits
from interp.capture.prefill import Prefill, prefill
from interp.data.images import open_image
from interp.extract.references import blurred, references
from interp.extract.source_sets import source_sets
from interp.inputs.prompts import image_inputs, with_images
from interp.model.parts import Layer, Parts
from interp.model.state import attending, undisturbed
from interp.validate.case import Case, Finding
from interp.vocabulary import EDGE_MODES


@torch.no_grad()
def interventions(case: Case) -> list[Finding]:
    """Cuts in every mode and replaced content, for the first and the last target."""
    case = case.of([0, -1])
    query, vlm, sample = case.query, case.vlm, case.sample
    context = prefill(query.model, query.batch, query.rows)
    _, members = source_sets(query, ["image"], context.is_sink)
    hidden = cut_masks(members, query.rows, context.is_visible)[0]
    clean = gauge_logits(context.logits, query.targets, "centered").cpu().double().numpy()
    findings = []
    for mode in EDGE_MODES:
        total = extract.effects(vlm, sample, sources=["image"], mode=mode, **case.asked)["total"]
        cut = [
            states_with_cuts(case, context, row, one, mode)
            for row, one in zip(query.rows.split(1), hidden.split(1), strict=True)
        ]
        gap = clean - logits_of(case, torch.cat(cut)) - total.values[:, 0]
        findings.append(case.compare(f"a cut equals a forward with it ({mode})", gap, to=total))

    refs = references(vlm, sample, kinds=("blur",))
    total = extract.node_effects(vlm, sample, references=refs, sources=["image"], **case.asked)
    total = total["total"].values[:, 0, 0]
    blurry = blurred(open_image(sample.image))
    batch = with_images(query.batch, image_inputs(vlm.processor, [blurry]), 1)
    final = prefill(query.model, batch, query.rows).logits
    gap = clean - gauge_logits(final, query.targets, "centered").cpu().double().numpy() - total
    findings.append(case.compare("replaced content equals a forward with it", gap, to=total))
    return findings


def states_with_cuts(
    case: Case,
    context: Prefill,
    rows: Int[Tensor, " row"],
    hidden: Bool[Tensor, "row token"],
    mode: str,
) -> Float[Tensor, "row d_model"]:
    """Final states of some rows when each of them, and no other row, cannot read some tokens."""
    parts = case.query.parts
    with undisturbed(case.query.model), ExitStack() as stack:
        if mode == "mask":
            stack.enter_context(attending(parts.language_model, "sdpa"))
            return _forward(parts, context, attention_mask=_mask(parts, context, rows, hidden))[
                rows
            ]
        stack.enter_context(attending(parts.language_model, "eager"))
        is_averaged = case.query.is_visual if mode == "mean" else None
        for layer in parts.layers:
            hook = partial(_take_out, parts, layer, rows, hidden, is_averaged)
            handle = layer.attention.register_forward_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        return _forward(parts, context)[rows]


def _take_out(  # noqa: PLR0913, PLR0917 - a hook's arguments
    parts: Parts, layer: Layer, rows, hidden, is_averaged, _module, _args, kwargs, output
) -> tuple[Tensor, None]:
    """A layer's attention output whose rows read 0, or a mean value, over the cut edges."""
    out, weights = output
    values = layer.v_proj(kwargs["hidden_states"])[0]
    values = rearrange(values, "p (kv d) -> p kv d", kv=parts.n_kv_heads)
    values = values.repeat_interleave(parts.n_heads // parts.n_kv_heads, dim=1)
    fill = torch.zeros_like(values[0]) if is_averaged is None else values[is_averaged].mean(0)
    cut_weights = weights[0, :, rows] * hidden
    cut_values = torch.einsum("hrp,phd->rhd", cut_weights, values - fill)
    o_proj_inputs = rearrange(cut_values, "r h d -> r (h d)")
    written = layer.o_proj(torch.cat([o_proj_inputs, torch.zeros_like(o_proj_inputs[:1])]))
    out = out.clone()
    out[0, rows] -= written[:-1] - written[-1]
    return out, None


def _forward(parts: Parts, context: Prefill, **overrides) -> Float[Tensor, "token d_model"]:
    """The language model's plain forward over the whole sequence."""
    arguments = context.given | {"use_cache": False} | overrides
    return parts.run(arguments).last_hidden_state[0]


def logits_of(case: Case, hidden: Float[Tensor, "target d_model"]) -> Float[np.ndarray, " target"]:
    """The targets' logits above the vocabulary's mean, out of their final states."""
    logits = case.query.parts.output_embedding(hidden)
    return gauge_logits(logits, case.query.targets, "centered").cpu().double().numpy()


def _mask(parts: Parts, context: Prefill, rows: Tensor, hidden: Tensor) -> Tensor | dict:
    """The model's mask, in which some rows do not see some tokens; added to the scores."""
    if parts.seen_with:  # not causal alone: eager attention has it added up
        with attending(parts.language_model, "eager"):
            own = parts.masked(context.given | {"use_cache": False})["attention_mask"]
        masks = {kind: mask.clone() for kind, mask in own.items()}
        for mask in masks.values():
            mask[0, 0, rows] = mask[0, 0, rows].masked_fill(hidden, -torch.inf)
        return masks
    n_tokens = len(context.is_visible)
    is_seen = torch.ones(n_tokens, n_tokens, dtype=torch.bool, device=rows.device).tril()
    is_seen &= context.is_visible
    is_seen |= torch.eye(n_tokens, dtype=torch.bool, device=rows.device)  # padding sees itself
    is_seen[rows] &= ~hidden
    scores = torch.zeros(1, 1, n_tokens, n_tokens, device=rows.device, dtype=context.content.dtype)
    return scores.masked_fill(~is_seen, -torch.inf)
