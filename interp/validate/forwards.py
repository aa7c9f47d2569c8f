"""The replay against the model's own forwards of the whole sequence (METHODS.md 6, oracle 2).

Nothing here replays. The clean forward is traced in place; eager attention gives its weights; an
edge is cut by a four-dimensional mask; content is replaced by other embeddings.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp import extract
from interp.capture import attending, replay
from interp.effects import cut_masks
from interp.model import undisturbed
from interp.prefill import Prefill, prefill
from interp.query import source_sets
from interp.readout import gauge_logits
from interp.references import references
from interp.validate.case import Case, Finding, by_layer, relative


@torch.no_grad()
def rows_of_the_forward(case: Case) -> list[Finding]:
    """What attention and FFN put out at the replayed rows, and the attention rows themselves."""
    findings = []
    query = case.query
    context = prefill(query.model, query.batch, query.rows)
    played = replay(query.model, context, query.rows)
    for name, mine, theirs in (
        ("attention", played.attention, case.stream["attn_out"]),
        ("FFN", played.ffn, case.stream["ffn_out"]),
    ):
        errors = [
            relative(one[0] - other[query.rows], to=other)
            for one, other in zip(mine, theirs, strict=True)
        ]
        findings.append(
            by_layer(f"replayed {name} output equals the forward's", errors, case.bound)
        )
    weights, logits = eager_rows(case)
    errors = [
        float((one[0].double() - other.double()).abs().max())
        for one, other in zip(played.weights, weights, strict=True)
    ]
    findings.append(by_layer("attention rows equal eager attention weights", errors, case.bound))
    gap = relative(logits - context.logits, to=context.logits)
    findings.append(Finding("the model's attention equals eager attention", gap, case.bound))
    return findings


@torch.no_grad()
def eager_rows(case: Case) -> tuple[list[Float[Tensor, "target head token"]], Tensor]:
    """Attention weights of the queried rows by layer, and their logits, from an eager forward."""
    where, rows, kept = case.query.where, case.query.rows, []

    def look(_module, _args, output):
        kept.append(output[1][0, :, rows].transpose(0, 1))
        return output[0], None  # no layer's whole matrix is kept

    hooks = [layer.self_attn.register_forward_hook(look) for layer in where.language_model.layers]
    try:
        with undisturbed(case.query.model), attending(where.language_model, "eager"):
            out = case.query.model(**case.query.batch, use_cache=False, logits_to_keep=rows)
    finally:
        for hook in hooks:
            hook.remove()
    return kept, out.logits[0]


@torch.no_grad()
def interventions(case: Case) -> list[Finding]:
    """Total effects against forwards in which the model itself is interfered with."""
    findings = []
    query, vlm, sample = case.query, case.vlm, case.sample
    context = prefill(query.model, query.batch, query.rows)
    clean = gauge_logits(context.logits, query.targets, "centered")
    _, members = source_sets(query, ["image"], context.is_sink)
    fx = extract.effects(vlm, sample, sources=["image"], mode="mask", **case.asked)
    cut = _logits(case, context, mask=cut_masks(members, query.rows, context.is_visible)[0])
    gap = (clean - cut).cpu().double().numpy() - fx["total"].values[:, 0]
    error = float(np.max(np.abs(gap) / case.magnitude))
    findings.append(Finding("a masked cut equals a forward under that mask", error, case.bound))

    refs = references(vlm, sample, kinds=("blur",))
    nodes = extract.node_effects(vlm, sample, references=refs, sources=["image"], **case.asked)
    embeddings = context.embeddings.clone()
    embeddings[members[0]] = refs["blur"].embeddings.to(embeddings)
    other = _logits(case, context, embeddings=embeddings)
    gap = (clean - other).cpu().double().numpy() - nodes["total"].values[:, 0, 0]
    error = float(np.max(np.abs(gap) / case.magnitude))
    findings.append(Finding("replaced content equals a forward with it", error, case.bound))
    return findings


def _logits(case: Case, context: Prefill, mask=None, embeddings=None) -> Float[Tensor, " target"]:
    """The targets' own logits in the centered gauge, from the language model's plain forward.

    With `mask` (target, token) every target's row has a forward of its own, in which it alone
    cannot see those tokens.
    """
    query, where = case.query, case.query.where
    given = context.given | {"use_cache": False}
    if embeddings is not None:
        given["inputs_embeds"] = embeddings[None]
    hidden = []
    with undisturbed(query.model), attending(where.language_model, "sdpa"):
        if mask is None:
            hidden = where.language_model(**given).last_hidden_state[0, query.rows]
        else:
            for row, hides in zip(query.rows, mask, strict=True):
                given["attention_mask"] = {"full_attention": _mask(context, row, hides)}
                hidden.append(where.language_model(**given).last_hidden_state[0, row])
            hidden = torch.stack(hidden)
    return gauge_logits(where.output_embedding(hidden), query.targets, "centered")


def _mask(context: Prefill, row: Tensor, hides: Tensor) -> Tensor:
    """The causal mask, in which one row does not see some tokens; added to the scores."""
    n_tokens = len(context.is_visible)
    is_seen = torch.ones(n_tokens, n_tokens, dtype=torch.bool, device=row.device).tril()
    is_seen &= context.is_visible
    is_seen |= torch.eye(n_tokens, dtype=torch.bool, device=row.device)  # padding sees itself
    is_seen[row] &= ~hides
    scores = torch.zeros(
        1, 1, n_tokens, n_tokens, device=row.device, dtype=context.embeddings.dtype
    )
    return scores.masked_fill(~is_seen, -torch.inf)
