"""Edge effects of source sets (METHODS.md 3.1)."""

from dataclasses import dataclass

import torch
import xarray as xr
from jaxtyping import Bool, Int
from torch import Tensor

from interp.algebra.effects import EdgeEffects, cut_masks, edge_effects, mean_values
from interp.algebra.readout import read_out
from interp.capture.prefill import Prefills
from interp.capture.replay import Replay, replay, replays
from interp.capture.slots import Variants, cutting
from interp.extract.arguments import Foils, Inputs, Model, Positions, Sources, TargetTokens, Text
from interp.extract.dataset import as_array, coordinates, finished, joined, where_defined
from interp.extract.prefilled import Asked, asked
from interp.extract.question import Query, target_chunks
from interp.extract.source_sets import source_sets
from interp.model.state import undisturbed
from interp.vocabulary import EDGE_MODES, EDGE_PATHS, LAYER_PATHS


def effects(
    model: Model,
    inputs: Inputs,
    *,
    completion: Text | None = None,
    positions: Positions | None = None,
    targets: TargetTokens | None = None,
    sources: Sources | None = None,
    mode: str = "zero",
    gauge: str = "centered",
    foils: Foils | None = None,
) -> xr.Dataset:
    """Edge effects: the exact split of what a target loses without a source set (METHODS.md 3.1).

    total = Σ over path of effect, for every (target, source_set); all cuts ride in one replay.
    Where a set has no member before the target's row, the effect is NaN and `is_defined` False.

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
    check_mode(mode)
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
        cuts = cut(prefilled, sources, mode)
        chunks = []
        for part in target_chunks(prefilled.query, n_variants=1 + len(cuts.names)):
            rows, variants = prefilled.query.rows[part], cuts.variants.part(part)
            chunks.append(
                split(
                    prefilled,
                    cuts,
                    part,
                    replay(prefilled.query.model, prefilled.context, rows, variants),
                )
            )
    return labelled(prefilled, cuts, chunks)


def effects_of(
    all_prefilled: list[Asked], batch: Prefills, settings: list[dict]
) -> list[xr.Dataset]:
    """`effects` of several sequences out of one replay; settings by the names of its arguments."""
    all_cuts = [
        cut(one, own["sources"], own["mode"])
        for one, own in zip(all_prefilled, settings, strict=True)
    ]
    rows = [one.query.rows for one in all_prefilled]
    all_played = replays(
        all_prefilled[0].query.model, batch, rows, [one.variants for one in all_cuts]
    )
    datasets = []
    for prefilled, played, cuts in zip(all_prefilled, all_played, all_cuts, strict=True):
        all_targets = torch.arange(len(prefilled.query.rows), device=prefilled.query.rows.device)
        datasets.append(labelled(prefilled, cuts, [split(prefilled, cuts, all_targets, played)]))
    return datasets


def check_mode(mode: str) -> None:
    """Raises ValueError for an unknown mode."""
    if mode not in EDGE_MODES:
        raise ValueError(f"expected a mode of {EDGE_MODES}, got {mode!r}")


@dataclass(frozen=True)
class Cuts:
    """Which edges of which sets are cut, and how."""

    mode: str
    names: tuple[str, ...]
    variants: Variants
    """The clean one first."""
    is_defined: Bool[Tensor, "target source_set"]


def cut(prefilled: Asked, sources, mode: str) -> Cuts:
    """The cuts of source sets; raises ValueError for sets that the sample cannot have."""
    query, context = prefilled.query, prefilled.context
    names, members = source_sets(query, sources, context.is_sink)
    masks = cut_masks(members, query.rows, context.is_visible)
    fill = mean_values(context, _averaged(query, members)) if mode == "mean" else None
    return Cuts(mode, names, cutting(masks, mode, fill), masks.any(dim=-1).T)


def split(prefilled: Asked, cuts: Cuts, part: Int[Tensor, " part"], played: Replay) -> EdgeEffects:
    """The effects on some targets, from the replay of their rows."""
    readout = read_out(prefilled.query.parts, prefilled.gauge_rows[part], played.final[0])
    variants, rows = cuts.variants.part(part), prefilled.query.rows[part]
    return edge_effects(prefilled.query.parts, readout, prefilled.context, played, rows, variants)


def labelled(prefilled: Asked, cuts: Cuts, chunks: list[EdgeEffects]) -> xr.Dataset:
    """The effect ledger out of its parts."""
    is_defined = cuts.is_defined
    total = joined([one.total for one in chunks])
    by_layer = joined([one.by_layer for one in chunks])
    norm = joined([one.norm for one in chunks])
    effect = torch.cat([by_layer.sum(dim=-1), norm[..., None]], dim=-1)
    variables = {
        "effect": (("target", "source_set", "path"), where_defined(effect, is_defined)),
        "effect_by_layer": (
            ("target", "source_set", "layer_path", "layer"),
            where_defined(by_layer, is_defined),
        ),
        "total": (("target", "source_set"), where_defined(total, is_defined)),
        "is_defined": (("target", "source_set"), is_defined),
    }
    dataset = xr.Dataset(
        {name: (dims, as_array(value)) for name, (dims, value) in variables.items()},
        coords=coordinates(prefilled.query),
    )
    dataset = dataset.assign_coords(
        source_set=list(cuts.names), path=list(EDGE_PATHS), layer_path=list(LAYER_PATHS)
    )
    return finished(prefilled.query, dataset, {"gauge": prefilled.gauge, "mode": cuts.mode})


def _averaged(
    query: Query, members: Bool[Tensor, "source_set token"]
) -> Bool[Tensor, "source_set token"]:
    """The rows over whose values each set's mean is taken."""
    role = query.tokens.role
    visual = torch.tensor([r == "image" for r in role], device=members.device)
    question = torch.tensor([r == "question" for r in role], device=members.device)
    chosen = []
    for is_source in members:
        is_visual = visual[is_source]
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
