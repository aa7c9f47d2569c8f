"""The replayed rows against the model's own forward over the whole sequence (METHODS.md 6, 2)."""

import torch
from jaxtyping import Float
from torch import Tensor

from interp.capture.prefill import prefill
from interp.capture.replay import replay
from interp.model.state import attending, undisturbed
from interp.validate.case import Case, Finding, by_layer, relative


@torch.no_grad()
def rows_of_the_forward(case: Case) -> list[Finding]:
    """Compares the outputs of attention and FFN at the replayed rows, and the attention rows."""
    findings = []
    query, stream = case.query, case.stream
    context = prefill(query.model, query.batch, query.rows)
    played = replay(query.model, context, query.rows)
    for name, mine, theirs in (
        ("attention", played.attention, stream["attn_out"]),
        ("FFN", played.ffn, stream["ffn_out"]),
    ):
        errors = [
            relative(one[0] - other[query.rows], other[query.rows])
            for one, other in zip(mine, theirs, strict=True)
        ]
        findings.append(
            by_layer(f"replayed {name} output equals the forward's", errors, case.vector_bound)
        )
    weights, logits, _ = attention_of(case, "eager")
    # Total variation: the share of a row's attention that lies elsewhere.
    errors = [
        float((one[0].double() - other.double()).abs().sum(dim=-1).max() / 2)
        for one, other in zip(played.weights, weights, strict=True)
    ]
    findings.append(
        by_layer("attention rows equal eager attention weights", errors, case.vector_bound)
    )
    if query.parts.attn_implementation == "eager":
        _, logits, _ = attention_of(case, "sdpa")
    gap = relative(logits - context.logits, context.logits)
    findings.append(Finding("SDPA, eager and the model's attention agree", gap, case.vector_bound))
    return findings


@torch.no_grad()
def attention_of(
    case: Case, implementation: str
) -> tuple[
    list[Float[Tensor, "target head token"]],
    Float[Tensor, "target vocabulary"],
    list[Float[Tensor, "target d_model"]],
]:
    """Attention weights of the queried rows by layer, where eager; their logits; its outputs."""
    parts, rows, kept, outputs = case.query.parts, case.query.rows, [], []

    def look(_module, _args, output):
        if output[1] is not None:
            kept.append(output[1][0, :, rows].transpose(0, 1))
        outputs.append(output[0][0, rows])
        return output[0], None  # no layer's whole matrix is kept

    hooks = [layer.attention.register_forward_hook(look) for layer in parts.layers]
    try:
        with undisturbed(case.query.model), attending(parts.language_model, implementation):
            out = case.query.model(**case.query.batch, use_cache=False, logits_to_keep=rows)
    finally:
        for hook in hooks:
            hook.remove()
    return kept, out.logits[0], outputs
