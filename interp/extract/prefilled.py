"""A question with its prefill and its gauge: most calls begin with it."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.algebra.readout import check_foils_are_read, check_gauge, gauge_rows
from interp.capture.prefill import Prefill, prefill
from interp.extract.question import Query, ask, foil_ids
from interp.extract.sharing import kept
from interp.model.state import undisturbed


@dataclass(frozen=True)
class Asked:
    """Targets of one sequence, what its forward left behind, and what reads it out."""

    query: Query
    context: Prefill
    gauge: str
    foils: Int[Tensor, " target"] | None
    gauge_rows: Float[Tensor, "target d_model"]


def asked(model, inputs, *, gauge: str, foils, **chosen) -> Asked:
    """Checks a question, prefills its sequence and picks the gauge.

    Args:
        model, inputs, gauge, foils: as for `ledger`.
        chosen: completion, positions and targets, as for `ledger`.

    Raises:
        ValueError: as `ledger`.
    """
    check_gauge(gauge, foils)
    check_foils_are_read(gauge, foils)
    query = ask(model, inputs, **chosen)
    with torch.no_grad(), undisturbed(query.model):
        context = clean_run(query)
        return read_in(query, context, gauge, foils)


def read_in(query: Query, context: Prefill, gauge: str, foils) -> Asked:
    """A prefilled query in a gauge.

    Raises:
        ValueError: an unknown gauge, missing foils, or not one valid id per target.
    """
    ids = foil_ids(query, gauge, foils, context.logits)
    rows = gauge_rows(query.parts.output_embedding, query.targets, gauge, ids)
    return Asked(query, context, gauge, ids, rows)


def clean_run(query: Query) -> Prefill:
    """The prefill of a query; inside `sharing`, one that has the query's rows already."""
    store, key = kept(), ("clean run", id(query.batch))
    rows = query.rows.tolist()
    if store is not None and key in store:
        (_, known), context = store[key]
        if set(rows) <= set(known):
            return replace(context, logits=context.logits[[known.index(row) for row in rows]])
    context = prefill(query.model, query.batch, query.rows)
    if store is not None:
        store[key] = ((query.batch, rows), context)
    return context
