"""Eq. 1 term by term, the slow way (METHODS.md 6, oracle 2): no folding, no replay.

Every vector α W_o W_v n(h_p) is formed by the model's own modules from the traced residual stream,
with eager attention weights, and then read out.
"""

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from interp.algebra.readout import gauge_rows
from interp.model.state import undisturbed
from interp.validate.case import Case, Finding, by_layer, of_sum
from interp.validate.forwards import attention_of

N_SOURCES = 8  # evenly spaced; and as many that a layer attends to most


@torch.no_grad()
def naive_terms(case: Case) -> list[Finding]:
    """Direct terms of some sources, and the value biases, of every layer and head.

    What a layer attends to most is among them: of faint edges alone rounding moves a large share.
    """
    ledger, query = case.ledger, case.query
    spaced = np.linspace(0, int(query.rows.max()), N_SOURCES).round().astype(int)
    weights, _, outputs = attention_of(case, "eager")
    vectors = _readout(case)
    errors = {"direct terms": [], "value biases": []}
    with undisturbed(query.model):
        for layer in range(query.parts.n_layers):
            strongest = weights[layer].sum(dim=(0, 1)).argsort(descending=True)[:N_SOURCES]
            sources = np.unique(np.concatenate([spaced, strongest.cpu().numpy()]))
            written, bias = _writes(case, layer, torch.from_numpy(sources).to(query.rows.device))
            # A norm behind attention multiplies all that a row has read, number by number.
            reading = vectors * _factor(case, layer, outputs[layer])
            read = torch.einsum("td,phd->thp", reading, written)
            terms = (read * weights[layer][..., sources].double()).cpu().numpy()
            ledger_terms = ledger["direct"].isel(layer=layer, source=sources).values
            errors["direct terms"].append(of_sum(ledger_terms - terms, terms, axis=(1, 2)).max())
            constant = torch.einsum("td,hd->th", reading, bias).cpu().numpy()
            ledger_biases = ledger["value_bias"].isel(layer=layer).values
            # Beside the direct terms: a layer may have no bias to speak of.
            all_terms = np.concatenate([constant, terms.sum(axis=2)], axis=1)
            errors["value biases"].append(of_sum(ledger_biases - constant, all_terms, axis=1).max())
    return [
        by_layer(f"folded {name} equal the naive ones", layer_errors, case.vector_bound)
        for name, layer_errors in errors.items()
    ]


def _readout(case: Case) -> Float[Tensor, "target d_model"]:
    """u = g ⊙ γ / rms(h), with 1 / rms(h) from what the final norm makes of h's largest part."""
    query, parts = case.query, case.query.parts
    final = case.stream["resid_post"][-1][query.rows].double()
    with undisturbed(query.model):
        factor = _of_norm(parts, parts.final_norm, final)
    return gauge_rows(parts.output_embedding, query.targets, "centered").double() * factor


def _factor(case: Case, layer: int, output: Tensor) -> Float[Tensor, "target d_model"] | float:
    """The factors of each row's numbers by a norm behind attention; 1 without one."""
    norm = case.query.parts.layers[layer].attention_post_norm
    return _of_norm(case.query.parts, norm, output.double()) if norm else 1.0


def _of_norm(parts, norm, x: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
    """γ / rms(x), the latter by what the norm makes of x's largest part."""
    gamma, normed = parts.weight_of(norm).double(), norm(x).double()
    largest = (x * gamma).abs().argmax(dim=-1, keepdim=True)
    return gamma * normed.gather(1, largest) / (x * gamma).gather(1, largest)


def _writes(
    case: Case, layer: int, sources: Tensor
) -> tuple[Float[Tensor, "source head d_model"], Float[Tensor, "head d_model"]]:
    """W_o W_v n(h_p) without the bias for every head, and W_o b_v with its share of b_o."""
    parts = case.query.parts
    block = parts.layers[layer]
    normed = block.attention_norm(case.stream["resid_pre"][layer][sources])
    values = block.v_proj(torch.cat([normed, torch.zeros_like(normed[:1])]))
    values = rearrange(values, "p (kv d) -> p kv d", kv=parts.n_kv_heads)
    group = parts.n_heads // parts.n_kv_heads
    written = []
    for head in range(parts.n_heads):
        head_values = torch.zeros(
            len(values), parts.n_heads, parts.d_head, dtype=values.dtype, device=values.device
        )
        head_values[:, head] = values[:, head // group]
        written.append(block.o_proj(rearrange(head_values, "p h d -> p (h d)")).double())
    written = torch.stack(written, dim=1)
    alone = values.new_zeros(1, parts.n_heads * parts.d_head)
    constant = block.o_proj(alone)[0].double()  # which every head alone has been given whole
    return written[:-1] - written[-1], written[-1] - constant + constant / parts.n_heads
