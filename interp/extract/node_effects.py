"""Node effects of visual source sets (METHODS.md 3.2)."""

import torch
import xarray as xr
from einops import rearrange

from interp.algebra.node_effects import NodeEffects, node_runs
from interp.algebra.node_effects import node_effects as split_of
from interp.algebra.readout import read_out
from interp.extract.arguments import Foils, Inputs, Model, Positions, Sources, TargetTokens, Text
from interp.extract.dataset import as_array, coordinates, finished, where_defined
from interp.extract.prefilled import asked
from interp.extract.question import target_chunks
from interp.extract.replaced import Case, Cases, cases, grouped_cases, replayed
from interp.model.state import undisturbed
from interp.vocabulary import NODE_PATHS, ROLES


def node_effects(
    model: Model,
    inputs: Inputs,
    *,
    references,
    sources: Sources | None = None,
    completion: Text | None = None,
    positions: Positions | None = None,
    targets: TargetTokens | None = None,
    gauge: str = "centered",
    foils: Foils | None = None,
) -> xr.Dataset:
    """Node effects: what a target loses when a visual set's content is another (METHODS.md 3.2).

    total = Σ over path of effect; Σ over role of mediated_by_role = the path "mediated". Where a
    set has no member before the target's row, or the twin's own text has the same token there,
    effects are NaN and `is_defined` is False.

    Args:
        model, inputs, completion, positions, targets, gauge, foils: as for `ledger`.
        references: {name: Reference} as `interp.extract.references` makes them, or {name: content},
            (visual token, content): an embedding each, with DeepStack the levels behind it.
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
            found
            for group in grouped_cases(replacements)
            for found in _together(replacements, group)
        ]
    return _labelled(replacements, effects, {"gauge": gauge})


def _together(replacements: Cases, group: list[Case]) -> list[NodeEffects]:
    """The effects of some cases out of one replay, with `by_role` over all of `ROLES`."""
    query = replacements.query
    members = [replacements.members[case.source_set] for case in group]
    present, masks = zip(*(_roles(replacements, one) for one in members), strict=True)
    runs = [node_runs(one, own) for one, own in zip(members, masks, strict=True)]
    by_case: list[list[NodeEffects]] = [[] for _ in group]
    for part in target_chunks(query, sum(map(len, runs))):
        rows = query.rows[part]
        all_played = replayed(replacements, rows, group, runs)
        # The first variant of every case is the clean run.
        readout = read_out(query.parts, replacements.asked.gauge_rows[part], all_played[0].final[0])
        for k, (case, played) in enumerate(zip(group, all_played, strict=True)):
            both = (replacements.context, case.run)
            by_case[k].append(split_of(query.parts, readout, both, played, members[k], rows))
    return [_joined(pieces, names) for pieces, names in zip(by_case, present, strict=True)]


def _joined(pieces: list[NodeEffects], present: list[str]) -> NodeEffects:
    """Chunks of targets as one, with `by_role` over all of `ROLES`."""
    by_role = torch.cat([p.by_role for p in pieces], dim=-1)
    spread = by_role.new_zeros(len(ROLES), by_role.shape[1])
    spread[[ROLES.index(name) for name in present]] = by_role
    return NodeEffects(
        torch.cat([p.total for p in pieces]),
        torch.cat([p.paths for p in pieces], dim=-1),
        spread,
        torch.cat([p.alone for p in pieces]),
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
