"""Order-free shares of visual source sets (METHODS.md 3.3)."""

from dataclasses import fields

import torch
import xarray as xr
from einops import rearrange
from torch import Tensor

from interp.algebra import shapley as coalitions
from interp.algebra.readout import check_gauge, read_out
from interp.extract.arguments import Foils, Inputs, Model, Positions, Sources, TargetTokens, Text
from interp.extract.dataset import as_array, coordinates, finished, where_defined
from interp.extract.prefilled import asked, read_in
from interp.extract.question import target_chunks
from interp.extract.replaced import Case, Cases, cases, grouped_cases, replayed
from interp.model.state import undisturbed
from interp.vocabulary import NORMS, PAIRS, PATH_CLASSES, WRITES


def shapley(
    model: Model,
    inputs: Inputs,
    *,
    references,
    sources: Sources | None = None,
    completion: Text | None = None,
    positions: Positions | None = None,
    targets: TargetTokens | None = None,
    gauge: str | tuple[str, ...] = "centered",
    foils: Foils | None = None,
) -> xr.Dataset:
    """Shapley values of three path classes, order-free (METHODS.md 3.3).

    total = Σ over path_class of shapley, under the live and the frozen norm; `shapley_strict`
    counts only values, not their pattern, as the direct write. All coalitions ride in one replay.

    Args:
        model, inputs, completion, positions, targets, foils: as for `ledger`.
        references, sources: as for `node_effects`.
        gauge: one of "centered", "raw", "contrast", or several, which adds a dimension.

    Raises:
        ValueError: as for `node_effects`.
    """
    gauges = (gauge,) if isinstance(gauge, str) else tuple(gauge)
    for gauge_name in gauges:
        check_gauge(gauge_name, foils)
    prefilled = asked(
        model,
        inputs,
        completion=completion,
        positions=positions,
        targets=targets,
        gauge="contrast" if "contrast" in gauges else gauges[0],
        foils=foils,
    )
    query, context = prefilled.query, prefilled.context
    with torch.no_grad(), undisturbed(query.model):
        replacements = cases(prefilled, sources, references)
        rows = {one: read_in(query, context, one, foils).gauge_rows for one in gauges}
        by_case = [
            found
            for group in grouped_cases(replacements)
            for found in _together(replacements, rows, group)
        ]
    return _labelled(replacements, by_case, gauge)


def _together(
    replacements: Cases, by_gauge: dict[str, Tensor], group: list[Case]
) -> list[list[dict[str, Tensor]]]:
    """By case and gauge: every variable, its target axis last. One replay for all cases."""
    query = replacements.query
    runs = [coalitions.coalition_runs(replacements.members[case.source_set]) for case in group]
    chunks = []
    for part in target_chunks(query, sum(map(len, runs))):
        played = replayed(replacements, query.rows[part], group, runs)
        # The clean run is a coalition of every case.
        readouts = [
            read_out(query.parts, rows[part], played[0].final[-1]) for rows in by_gauge.values()
        ]
        chunks.append(
            [
                _of_case(replacements, readouts, case, one, part)
                for case, one in zip(group, played, strict=True)
            ]
        )
    return [
        [_joined(column) for column in zip(*case, strict=True)]
        for case in zip(*chunks, strict=True)
    ]


def _of_case(replacements: Cases, readouts, case: Case, played, part) -> list[dict[str, Tensor]]:
    """Every variable of one case, by gauge."""
    parts, runs = replacements.query.parts, (replacements.context, case.run)
    is_source = replacements.before[case.source_set][part]
    written = coalitions.writes(parts, readouts[0].biases, runs, played, is_source)
    return [_variables(parts, readout, played.final, written) for readout in readouts]


def _joined(pieces: tuple[dict[str, Tensor], ...]) -> dict[str, Tensor]:
    return {name: torch.cat([one[name] for one in pieces], dim=-1) for name in pieces[0]}


def _variables(parts, readout, final, written) -> dict[str, Tensor]:
    cubes = coalitions.cubes(parts, readout.gauge_rows, readout.vectors, final, written)
    split = coalitions.split(cubes["pattern and values"])
    variables = {field.name: getattr(split, field.name) for field in fields(split)}
    variables["pair_interaction"] = variables.pop("interactions")
    variables["shapley_strict"] = coalitions.split(cubes["values"]).shapley
    return variables | {"direct_write": coalitions.write_parts(readout, written)}


_EXTRA = {
    "shapley": ("path_class",),
    "shapley_strict": ("path_class",),
    "pair_interaction": ("pair",),
    "direct_write": ("write",),
}


def _labelled(replacements: Cases, by_case: list[list[dict]], gauge) -> xr.Dataset:
    """Variables over (target, source_set, reference, …), with gauge last where several."""
    axes = ("target", "source_set", "reference")
    variables = {}
    for name in by_case[0][0]:
        values = torch.stack([torch.stack([by[name] for by in one]) for one in by_case])
        values = rearrange(values, "(s r) g ... t -> t s r ... g", s=len(replacements.names))
        extra = _EXTRA.get(name, ()) + (("norm",) if name != "direct_write" else ())
        values = as_array(where_defined(values, replacements.is_defined))
        dims = (*axes, *extra, "gauge")
        variables[name] = (
            (dims, values) if not isinstance(gauge, str) else (dims[:-1], values[..., 0])
        )
    variables["is_defined"] = (axes, as_array(replacements.is_defined))
    dataset = xr.Dataset(variables, coords=coordinates(replacements.query)).assign_coords(
        source_set=list(replacements.names),
        reference=list(replacements.references),
        norm=list(NORMS),
        path_class=list(PATH_CLASSES),
        pair=list(PAIRS),
        write=list(WRITES),
    )
    attributes = {"gauge": gauge if isinstance(gauge, str) else ", ".join(gauge)}
    if not isinstance(gauge, str):
        dataset = dataset.assign_coords(gauge=list(gauge))
    return finished(replacements.query, dataset, attributes | {"norm": "live and frozen"})
