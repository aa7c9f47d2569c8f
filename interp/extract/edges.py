"""Edge effects of source sets (METHODS.md 3.1)."""

import torch
import xarray as xr
from jaxtyping import Bool
from torch import Tensor

from interp.capture import replay
from interp.effects import cut_masks, edge_effects, mean_values
from interp.labelled import as_array, coordinates, finished
from interp.labels import EDGE_MODES, EDGE_PATHS, LAYER_PATHS
from interp.model import undisturbed
from interp.prefill import prefill
from interp.query import Query, ask, foil_ids, source_sets, target_chunks
from interp.readout import check_gauge, gauge_rows, read_out
from interp.rows import cutting


def effects(
    model,
    inputs,
    *,
    completion=None,
    positions=None,
    targets=None,
    sources=None,
    mode: str = "zero",
    gauge: str = "centered",
    foils=None,
) -> xr.Dataset:
    """Edge effects: the exact split of what a target loses without a source set (METHODS.md 3.1).

    total = Σ over path of effect, for every (target, source_set); all cuts ride in one replay.
    Where a set has no member before the target's row, the effect is 0 and `is_defined` False.

    Args:
        model, inputs, completion, positions, targets, gauge, foils: as for `ledger`.
        sources: names of source sets (default: all that the sample has), or {name: rows}; with a
            batch the default is the image.
        mode: "zero", the values read over the cut edges left out without renormalising; "mean",
            replaced by their mean over all visual rows (for a set of text: over the question's
            rows); "mask", the edges taken out of the softmax too.

    Raises:
        ValueError: as for `ledger`; unknown mode, unknown source set, unknown or duplicate rows; in
            the mode "mean", a set of visual and other rows, or one of text without a question.
    """
    if mode not in EDGE_MODES:
        raise ValueError(f"expected a mode of {EDGE_MODES}, got {mode!r}")
    check_gauge(gauge, foils)
    query = ask(model, inputs, completion=completion, positions=positions, targets=targets)
    with torch.no_grad(), undisturbed(query.model):
        context = prefill(query.model, query.batch, query.rows)
        names, members = source_sets(query, sources, context.is_sink)
        foils = foil_ids(query, gauge, foils, context.logits)
        rows_g = gauge_rows(query.where.output_embedding, query.targets, gauge, foils)
        cuts = cut_masks(members, query.rows, context.is_visible)
        fill = mean_values(context, _averaged(query, members)) if mode == "mean" else None
        variants = cutting(cuts, mode, fill)
        chunks = [
            _chunk(query, context, rows_g, variants, part)
            for part in target_chunks(query, n_variants=1 + len(names))
        ]
    is_defined = cuts.any(dim=-1).T
    total, by_layer, norm = (torch.cat(column) for column in zip(*chunks, strict=True))
    effect = torch.cat([by_layer.sum(dim=-1), norm[..., None]], dim=-1)
    variables = {
        "effect": (("target", "source_set", "path"), effect * is_defined[..., None]),
        "effect_by_layer": (
            ("target", "source_set", "layer_path", "layer"),
            by_layer * is_defined[..., None, None],
        ),
        "total": (("target", "source_set"), total * is_defined),
        "is_defined": (("target", "source_set"), is_defined),
    }
    dataset = xr.Dataset(
        {name: (dims, as_array(value)) for name, (dims, value) in variables.items()},
        coords=coordinates(query),
    )
    dataset = dataset.assign_coords(
        source_set=list(names), path=list(EDGE_PATHS), layer_path=list(LAYER_PATHS)
    )
    return finished(query, dataset, {"gauge": gauge, "mode": mode})


def _chunk(query, context, rows_g, variants, part) -> tuple[Tensor, Tensor, Tensor]:
    rows, variants = query.rows[part], variants.part(part)
    played = replay(query.model, context, rows, variants)
    readout = read_out(query.where, rows_g[part], played.final[0])
    split = edge_effects(query.where, readout, context, played, rows, variants)
    return split.total, split.by_layer, split.norm


def _averaged(
    query: Query, members: Bool[Tensor, "source_set token"]
) -> Bool[Tensor, "source_set token"]:
    """The rows over whose values each set's mean is taken."""
    role = query.tokens.role
    visual = torch.tensor([r == "image" for r in role], device=members.device)
    question = torch.tensor([r == "question" for r in role], device=members.device)
    chosen = []
    for one in members:
        is_visual = visual[one]
        if is_visual.any() and not is_visual.all():
            raise ValueError(
                'expected source sets of visual rows or of text alone in the mode "mean", got one '
                "of both; split it"
            )
        if not is_visual.any() and not question.any():
            raise ValueError(
                'expected a question whose values to average for a set of text in the mode "mean", '
                "got none; pass a VLM with a Sample, or use another mode"
            )
        chosen.append(visual if is_visual.any() else question)
    return torch.stack(chosen)
