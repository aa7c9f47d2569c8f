"""First-order maps of a source set (METHODS.md 3.4)."""

import numpy as np
import torch
import xarray as xr
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from interp.algebra.effects import clean_against, cut_masks
from interp.algebra.first_order import ENDS, Cut, FirstOrder, quadrature
from interp.algebra.first_order import first_order as maps_of
from interp.algebra.readout import read_out
from interp.capture.prefill import Prefills
from interp.capture.replay import Replay, replays
from interp.capture.slots import scaled
from interp.extract.arguments import Foils, Inputs, Model, Positions, TargetTokens, Text
from interp.extract.dataset import as_array, coordinates, finished
from interp.extract.prefilled import Asked, asked
from interp.extract.question import target_chunks
from interp.extract.source_sets import source_sets
from interp.model.state import undisturbed
from interp.vocabulary import OBJECTIVES


def first_order(
    model: Model,
    inputs: Inputs,
    *,
    source="image",
    n_nodes: int = 8,
    objectives: tuple[str, ...] = ("total",),
    completion: Text | None = None,
    positions: Positions | None = None,
    targets: TargetTokens | None = None,
    gauge: str = "centered",
    foils: Foils | None = None,
) -> xr.Dataset:
    """First-order effects of every token of a set at every layer (METHODS.md 3.4).

    With nodes, Σ over layer and source of first_order + first_order_bias + completeness_error =
    total, the exact joint edge cut, for the objective "total". The maps of "ffn" and "attention"
    are its parts under the frozen norm. None knows keys, or what travels through other positions.
    In a mixture of experts no gradient sees a row being given others along the cut: what that does
    stays in `completeness_error`.

    Args:
        model, inputs, completion, positions, targets, gauge, foils: as for `ledger`.
        source: name of a source set, or its rows.
        objectives: of "total", "ffn" and "attention"; each costs a backward pass.
        n_nodes: Gauss-Legendre nodes along the cut; 0 for plain gradient × write, which saturates.

    Raises:
        ValueError: as for `ledger`; an unknown source set or objective, or a negative number of
            nodes.
    """
    check(objectives, n_nodes)
    prefilled = asked(
        model,
        inputs,
        completion=completion,
        positions=positions,
        targets=targets,
        gauge=gauge,
        foils=foils,
    )
    query, context = prefilled.query, prefilled.context
    is_source = members(prefilled, source)
    nodes, _ = quadrature(n_nodes, query.rows.device)
    alone = Prefills(context.keys, context.values, [context], [0])
    # A backward pass keeps about three times what a forward does.
    chunks = []
    for part in target_chunks(query, n_variants=3 * len(nodes)):
        chunks += together([prefilled], alone, [part], [is_source], n_nodes, objectives)
    return labelled(prefilled, is_source, chunks, n_nodes, objectives)


def first_orders_of(
    all_prefilled: list[Asked], batch: Prefills, settings: list[dict]
) -> list[xr.Dataset]:
    """`first_order` of several sequences out of one replay; settings as its arguments."""
    own = settings[0]
    n_nodes, objectives = own["n_nodes"], own["objectives"]
    check(objectives, n_nodes)
    parts = [
        torch.arange(len(one.query.rows), device=one.query.rows.device) for one in all_prefilled
    ]
    sources = [
        members(one, mine["source"]) for one, mine in zip(all_prefilled, settings, strict=True)
    ]
    chunks = together(all_prefilled, batch, parts, sources, n_nodes, objectives)
    return [
        labelled(one, mine, [chunk], n_nodes, objectives)
        for one, mine, chunk in zip(all_prefilled, sources, chunks, strict=True)
    ]


def check(objectives: tuple[str, ...], n_nodes: int) -> None:
    """Raises ValueError for unknown objectives or a negative number of nodes."""
    if not objectives or set(objectives) - set(OBJECTIVES) or objectives[0] != "total":
        raise ValueError(f"expected objectives of {OBJECTIVES}, total first, got {objectives}")
    if isinstance(n_nodes, bool) or not isinstance(n_nodes, int | np.integer) or n_nodes < 0:
        raise ValueError(f"expected n_nodes >= 0 as a whole number, got {n_nodes}")


def members(prefilled: Asked, source) -> Bool[Tensor, "target token"]:
    """S ∩ {p < i} of each target."""
    sources = [source] if isinstance(source, str) else {"source": source}
    _, chosen = source_sets(prefilled.query, sources, prefilled.context.is_sink)
    return cut_masks(chosen, prefilled.query.rows, prefilled.context.is_visible)[0]


def together(
    all_prefilled: list[Asked],
    batch: Prefills,
    slices: list,
    sources: list,
    n_nodes: int,
    objectives,
) -> list[tuple[FirstOrder, Float[Tensor, " part"], Replay]]:
    """First-order maps of a chunk of targets, each joint cut's total effect, and the end-points."""
    model, parts = all_prefilled[0].query.model, all_prefilled[0].query.parts
    nodes, weights = quadrature(n_nodes, all_prefilled[0].query.rows.device)
    rows = [one.query.rows[part] for one, part in zip(all_prefilled, slices, strict=True)]
    masks = [one[part] for one, part in zip(sources, slices, strict=True)]
    end_nodes = torch.tensor(ENDS, device=nodes.device)
    with undisturbed(model):
        with torch.no_grad():
            ends = replays(model, batch, rows, [scaled(one, end_nodes) for one in masks])
            readouts = [
                read_out(parts, one.gauge_rows[part], end.final[0])
                for one, part, end in zip(all_prefilled, slices, ends, strict=True)
            ]
            totals = [
                clean_against(parts, readout, end)[0][0]
                for readout, end in zip(readouts, ends, strict=True)
            ]
        with torch.enable_grad():
            played = replays(model, batch, rows, [scaled(one, nodes) for one in masks])
            cuts = [
                Cut(readout, context, one, is_source.to(readout.vectors.dtype))
                for readout, context, one, is_source in zip(
                    readouts, batch.sequences, played, masks, strict=True
                )
            ]
            first_orders = maps_of(parts, cuts, weights, objectives)
    return list(zip(first_orders, totals, ends, strict=True))


def labelled(
    prefilled: Asked, is_source, chunks: list[tuple], n_nodes: int, objectives
) -> xr.Dataset:
    """The first-order maps out of their parts."""
    writes = torch.cat([found.writes for found, *_ in chunks], dim=2)
    bias = torch.cat([found.bias for found, *_ in chunks], dim=1)
    total = torch.cat([total for _, total, _ in chunks])
    error = total - writes[0].sum(dim=(0, 2)) - bias[0]
    is_defined = is_source.any(dim=1)
    dataset = xr.Dataset(
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
        coords=coordinates(prefilled.query, prefilled.context),
    ).assign_coords(objective=list(objectives))
    return finished(prefilled.query, dataset, {"gauge": prefilled.gauge, "n_nodes": str(n_nodes)})
