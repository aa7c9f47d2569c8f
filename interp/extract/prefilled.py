"""A question with its prefill and its gauge: most calls begin with it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.algebra.readout import check_gauge, gauge_rows
from interp.capture.prefill import Prefill, prefill
from interp.extract.question import Query, ask, foil_ids
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
    query = ask(model, inputs, **chosen)
    with torch.no_grad(), undisturbed(query.model):
        context = prefill(query.model, query.batch, query.rows)
        return read_in(query, context, gauge, foils)


def read_in(query: Query, context: Prefill, gauge: str, foils) -> Asked:
    """A prefilled query in a gauge.

    Raises:
        ValueError: an unknown gauge, missing foils, or not one valid id per target.
    """
    ids = foil_ids(query, gauge, foils, context.logits)
    rows = gauge_rows(query.parts.output_embedding, query.targets, gauge, ids)
    return Asked(query, context, gauge, ids, rows)
