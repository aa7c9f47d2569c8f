"""First-order maps of a source set (METHODS.md 3.4)."""

import torch
import xarray as xr
from einops import rearrange
from torch import Tensor

from interp.capture import replay
from interp.effects import clean_against, cut_masks
from interp.extract.asked import Asked, asked
from interp.first_order import ENDS, FirstOrder, quadrature
from interp.first_order import first_order as maps_of
from interp.labelled import as_array, coordinates, finished
from interp.labels import OBJECTIVES
from interp.model import undisturbed
from interp.query import source_sets, target_chunks
from interp.readout import read_out
from interp.rows import scaled


def first_order(
    model,
    inputs,
    *,
    source="image",
    n_nodes: int = 8,
    objectives: tuple[str, ...] = ("total",),
    completion=None,
    positions=None,
    targets=None,
    gauge: str = "centered",
    foils=None,
) -> xr.Dataset:
    """First-order effects of every token of a set at every layer (METHODS.md 3.4).

    With nodes, Σ over layer and source of first_order + first_order_bias + completeness_error =
    total, the exact joint edge cut, for the objective "total". The maps of "ffn" and "attention"
    are its parts under the frozen norm. None knows keys, or what travels through other positions.

    Args:
        model, inputs, completion, positions, targets, gauge, foils: as for `ledger`.
        source: name of a source set, or its rows.
        objectives: of "total", "ffn" and "attention"; each costs a backward pass.
        n_nodes: Gauss-Legendre nodes along the cut; 0 for plain gradient × write, which saturates.

    Raises:
        ValueError: as for `ledger`; an unknown source set or objective, or a negative number of
            nodes.
    """
    if not objectives or set(objectives) - set(OBJECTIVES) or objectives[0] != "total":
        raise ValueError(f"expected objectives of {OBJECTIVES}, total first, got {objectives}")
    if n_nodes < 0:
        raise ValueError(f"expected n_nodes >= 0, got {n_nodes}")
    made = asked(
        model, inputs, completion=completion, positions=positions, targets=targets,
        gauge=gauge, foils=foils,
    )  # fmt: skip
    query, context = made.query, made.context
    sources = [source] if isinstance(source, str) else {"source": source}
    _, members = source_sets(query, sources, context.is_sink)
    is_source = cut_masks(members, query.rows, context.is_visible)[0]
    nodes, weights = quadrature(n_nodes, query.rows.device)
    # A backward pass keeps about three times what a forward does.
    chunks = [
        _chunk(made, is_source, (nodes, weights, objectives), part)
        for part in target_chunks(query, n_variants=3 * len(nodes))
    ]
    dataset = _labelled(query, context, is_source, chunks)
    dataset = dataset.assign_coords(objective=list(objectives))
    return finished(query, dataset, {"gauge": gauge, "n_nodes": str(n_nodes)})


def _chunk(made: Asked, is_source, settings, part) -> tuple[FirstOrder, Tensor]:
    query, context = made.query, made.context
    nodes, weights, objectives = settings
    rows, mine = query.rows[part], is_source[part]
    with undisturbed(query.model):
        with torch.no_grad():
            both = torch.tensor(ENDS, device=nodes.device)
            ends = replay(query.model, context, rows, scaled(mine, both))
            readout = read_out(query.where, made.gauge_rows[part], ends.final[0])
            total = clean_against(query.where, readout, ends)[0][0]
        with torch.enable_grad():
            played = replay(query.model, context, rows, scaled(mine, nodes))
            is_source = mine.to(readout.vectors.dtype)
            found = maps_of(query.where, readout, context, played, is_source, weights, objectives)
    return found, total


def _labelled(query, context, is_source, chunks: list[tuple]) -> xr.Dataset:
    writes = torch.cat([found.writes for found, _ in chunks], dim=2)
    bias = torch.cat([found.bias for found, _ in chunks], dim=1)
    total = torch.cat([total for _, total in chunks])
    error = total - writes[0].sum(dim=(0, 2)) - bias[0]
    is_defined = is_source.any(dim=1)
    return xr.Dataset(
        {
            "first_order": (
                ("target", "layer", "source", "objective"),
                as_array(rearrange(writes, "o l t p -> t l p o")),
            ),
            "first_order_bias": (("target", "objective"), as_array(bias.T)),
            "total": (("target",), as_array(total)),
            "completeness_error": (("target",), as_array(error)),
            "is_defined": (("target",), as_array(is_defined)),
        },
        coords=coordinates(query, context),
    )
