"""Node effects of visual source sets (METHODS.md 3.2)."""

import torch
import xarray as xr
from einops import rearrange

from interp.algebra.node_effects import NodeEffects, node_runs
from interp.algebra.node_effects import node_effects as split_of
from interp.algebra.readout import read_out
from interp.capture.prefill import Prefill
from interp.capture.replay import replay
from interp.capture.slots import reading
from interp.extract.dataset import as_array, coordinates, finished, where_defined
from interp.extract.prefilled import asked
from interp.extract.question import target_chunks
from interp.extract.replaced import Cases, cases, reference_runs
from interp.model.state import undisturbed
from interp.vocabulary import NODE_PATHS, ROLES


def node_effects(
    model,
    inputs,
    *,
    references,
    sources=None,
    completion=None,
    positions=None,
    targets=None,
    gauge: str = "centered",
    foils=None,
) -> xr.Dataset:
    """Node effects: what a target loses when a visual set's content is another (METHODS.md 3.2).

    total = Σ over path of effect; Σ over role of mediated_by_role = the path "mediated". Where a
    set has no member before the target's row, or the twin's own text has the same token there,
    effects are NaN and `is_defined` is False.

    Args:
        model, inputs, completion, positions, targets, gauge, foils: as for `ledger`.
        references: {name: Reference} as `interp.extract.references` makes them, or {name: visual
            embeddings}, one for every visual token.
        sources: names of visual source sets, or {name: rows}; default the image and, with boxes,
            the evidence, and either without its sinks where it has any.

    Raises:
        ValueError: as for `ledger`; no or unfit references; a set with rows that are not visual.
    """
    prefilled = asked(
        model,
        inputs,
        completion=completion,
        positions=positions,
        targets=targets,
        gauge=gauge,
        foils=foils,
    )
    with torch.no_grad(), undisturbed(prefilled.query.model):
        replacements = cases(prefilled, sources, references)
        effects = [
            _one(replacements, replacements.members[s], other)
            for s, _, other in reference_runs(replacements)
        ]
    return _labelled(replacements, effects, {"gauge": gauge})


def _one(replacements: Cases, is_source, reference_run: Prefill) -> NodeEffects:
    """The effects of one set and reference, with `by_role` over all of `ROLES`."""
    query = replacements.query
    present, masks = _roles(replacements, is_source)
    runs = node_runs(is_source, masks)
    parts = []
    for part in target_chunks(query, len(runs)):
        rows = query.rows[part]
        variants = reading(runs, len(rows))
        played = replay(query.model, replacements.context, rows, variants, others=(reference_run,))
        readout = read_out(query.parts, replacements.asked.gauge_rows[part], played.final[0])
        parts.append(
            split_of(
                query.parts, readout, (replacements.context, reference_run), played, is_source, rows
            )
        )
    by_role = torch.cat([p.by_role for p in parts], dim=-1)
    spread = by_role.new_zeros(len(ROLES), by_role.shape[1])
    spread[[ROLES.index(name) for name in present]] = by_role
    return NodeEffects(
        torch.cat([p.total for p in parts]),
        torch.cat([p.paths for p in parts], dim=-1),
        spread,
        torch.cat([p.alone for p in parts]),
    )


def _roles(replacements: Cases, is_source) -> tuple[list[str], list[torch.Tensor]]:
    """The roles of the other tokens in the order in which the text has them, and their members."""
    role, is_source = replacements.query.tokens.role, is_source.tolist()
    other_roles = [None if mine else name for name, mine in zip(role, is_source, strict=True)]
    present = [name for name in dict.fromkeys(other_roles) if name not in (None, "padding")]
    device = replacements.members.device
    return present, [
        torch.tensor([o == name for o in other_roles], device=device) for name in present
    ]


def _labelled(replacements: Cases, effects: list[NodeEffects], attributes: dict) -> xr.Dataset:
    sizes = {"s": len(replacements.names), "r": len(replacements.references)}
    axes = ("target", "source_set", "reference")

    def stacked(name: str):
        values = torch.stack([getattr(one, name) for one in effects])
        values = rearrange(values, "(s r) ... t -> t s r ...", **sizes)
        return as_array(where_defined(values, replacements.is_defined))

    dataset = xr.Dataset(
        {
            "effect": ((*axes, "path"), stacked("paths")),
            "total": (axes, stacked("total")),
            "mediated_by_role": ((*axes, "role"), stacked("by_role")),
            "mediated_alone": (axes, stacked("alone")),
            "is_defined": (axes, as_array(replacements.is_defined)),
        },
        coords=coordinates(replacements.query),
    )
    dataset = dataset.assign_coords(
        source_set=list(replacements.names),
        reference=list(replacements.references),
        path=list(NODE_PATHS),
        role=list(ROLES),
    )
    return finished(replacements.query, dataset, attributes)
