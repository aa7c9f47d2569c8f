"""Total effects against forwards that are interfered with (METHODS.md 6, oracle 2).

Nothing here replays. Over the whole sequence, with all rows: an edge is cut by a four-dimensional
mask, or its values are taken out of what eager attention has put out; content is replaced by other
embeddings.
"""

from contextlib import ExitStack
from functools import partial

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from interp import extract
from interp.algebra.effects import cut_masks
from interp.algebra.readout import gauge_logits
from interp.capture.prefill import Prefill, prefill
from interp.extract.references import references
from interp.extract.source_sets import source_sets
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
        cut = [_cut(case, context, k, one, mode) for k, one in enumerate(hidden)]
        gap = clean - _logits(case, torch.stack(cut)) - total.values[:, 0]
        findings.append(case.compare(f"a cut equals a forward with it ({mode})", gap, to=total))

    refs = references(vlm, sample, kinds=("blur",))
    total = extract.node_effects(vlm, sample, references=refs, sources=["image"], **case.asked)
    total = total["total"].values[:, 0, 0]
    embeddings = context.embeddings.clone()
    embeddings[members[0]] = refs["blur"].embeddings.to(embeddings)
    with undisturbed(query.model):
        final = _forward(query.parts, context, inputs_embeds=embeddings[None])[query.rows]
    gap = clean - _logits(case, final) - total
    findings.append(case.compare("replaced content equals a forward with it", gap, to=total))
    return findings


def _cut(
    case: Case, context: Prefill, k: int, hidden: Tensor, mode: str
) -> Float[Tensor, " d_model"]:
    """The k-th target's final state when its row, and no other, cannot read some tokens."""
    parts, row = case.query.parts, case.query.rows[k]
    with undisturbed(case.query.model), ExitStack() as stack:
        if mode == "mask":
            stack.enter_context(attending(parts.language_model, "sdpa"))
            arguments = {"attention_mask": {"full_attention": _mask(context, row, hidden)}}
            return _forward(parts, context, **arguments)[row]
        stack.enter_context(attending(parts.language_model, "eager"))
        is_visual = case.query.is_visual
        is_averaged = is_visual if mode == "mean" else None
        for layer in parts.layers:
            hook = partial(_take_out, parts, layer, row, hidden, is_averaged)
            handle = layer.attention.register_forward_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        return _forward(parts, context)[row]


def _take_out(  # noqa: PLR0913, PLR0917 - a hook's arguments
    parts: Parts, layer: Layer, row, hidden, is_averaged, _module, _args, kwargs, output
) -> tuple[Tensor, None]:
    """A layer's attention output whose row reads 0, or a mean value, over the cut edges."""
    out, weights = output
    values = layer.v_proj(kwargs["hidden_states"])[0]
    values = rearrange(values, "p (kv d) -> p kv d", kv=parts.n_kv_heads)
    values = values.repeat_interleave(parts.n_heads // parts.n_kv_heads, dim=1)
    fill = torch.zeros_like(values[0]) if is_averaged is None else values[is_averaged].mean(0)
    cut_weights = weights[0, :, row] * hidden
    cut_values = torch.einsum("hp,phd->hd", cut_weights, values - fill)
    o_proj_inputs = torch.stack(
        [rearrange(cut_values, "h d -> (h d)"), cut_values.new_zeros(cut_values.numel())]
    )
    written, bias = layer.o_proj(o_proj_inputs)
    out = out.clone()
    out[0, row] -= written - bias
    return out, None


def _forward(parts: Parts, context: Prefill, **overrides) -> Float[Tensor, "token d_model"]:
    """The language model's plain forward over the whole sequence."""
    arguments = context.given | {"use_cache": False} | overrides
    return parts.language_model(**arguments).last_hidden_state[0]


def _logits(case: Case, hidden: Float[Tensor, "target d_model"]) -> Float[np.ndarray, " target"]:
    logits = case.query.parts.output_embedding(hidden)
    return gauge_logits(logits, case.query.targets, "centered").cpu().double().numpy()


def _mask(context: Prefill, row: Tensor, hidden: Tensor) -> Tensor:
    """The causal mask, in which one row does not see some tokens; added to the scores."""
    n_tokens = len(context.is_visible)
    is_seen = torch.ones(n_tokens, n_tokens, dtype=torch.bool, device=row.device).tril()
    is_seen &= context.is_visible
    is_seen |= torch.eye(n_tokens, dtype=torch.bool, device=row.device)  # padding sees itself
    is_seen[row] &= ~hidden
    scores = torch.zeros(
        1, 1, n_tokens, n_tokens, device=row.device, dtype=context.embeddings.dtype
    )
    return scores.masked_fill(~is_seen, -torch.inf)
