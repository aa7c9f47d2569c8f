"""Exact patch maps: every visual token as its own source set (METHODS.md 3.5)."""

import torch
import xarray as xr
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.algebra.effects import cut_masks, edge_effects
from interp.algebra.node_effects import slot_effects
from interp.algebra.readout import read_out
from interp.capture.prefill import Prefill, prefill_with
from interp.capture.replay import replay
from interp.capture.slots import cutting, reading
from interp.extract.arguments import Foils, Inputs, Model, Positions, TargetTokens, Text
from interp.extract.dataset import as_array, coordinates, finished, where_defined
from interp.extract.prefilled import Asked, asked
from interp.extract.question import REPLAY_BYTES, Query
from interp.extract.references import Reference
from interp.extract.replaced import checked_references
from interp.extract.source_sets import source_sets
from interp.model.state import undisturbed
from interp.vocabulary import EDGE_PATHS, SLOT_PATHS

FORMS = ("edge", "slot")


def patch_effects(
    model: Model,
    inputs: Inputs,
    *,
    form: str = "edge",
    reference=None,
    source="image",
    completion: Text | None = None,
    positions: Positions | None = None,
    targets: TargetTokens | None = None,
    gauge: str = "centered",
    foils: Foils | None = None,
) -> xr.Dataset:
    """The exact effect of every single token of a visual set, split into paths (METHODS.md 3.5).

    total = Σ over path of effect, by target and source; patches need not add up to `joint`, the
    effect of all of them, and `patch_interaction` is the difference.

    Args:
        model, inputs, completion, positions, targets, gauge, foils: as for `ledger`.
        form: "edge", the token's edges into the row cut (3.1); "slot", its key and value swapped
            for those of the reference run, which is nearer to what occlusion measures.
        reference: for "slot", a Reference or content as for `node_effects`; where a twin's is none
            for a target, effects are NaN and `is_defined` is False.
        source: name of a visual source set, or its rows.

    Raises:
        ValueError: as for `ledger`; unknown form; a missing or unfit reference; rows not visual.
    """
    if form not in FORMS:
        raise ValueError(f"expected a form of {FORMS}, got {form!r}")
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
    sources = [source] if isinstance(source, str) else {"source": source}
    members = source_sets(query, sources, context.is_sink)[1][0]
    if (members.cpu().numpy() & (query.tokens.image < 0)).any():
        raise ValueError("expected a source set of visual rows, got others; choose their rows")
    is_defined = cut_masks(members[None], query.rows, context.is_visible)[0]
    with torch.no_grad(), undisturbed(query.model):
        reference_run = None
        if form == "slot":
            reference, reference_run = _reference_run(prefilled, reference)
            fits = reference.is_defined(query)
            is_defined = is_defined & rearrange(torch.tensor(fits).to(is_defined), "t -> t 1")
        all_targets = torch.arange(len(query.rows), device=query.rows.device)
        n_together = max(1, _n_variants(query) // (2 + int(members.sum())))
        chunks = [
            _together(prefilled, reference_run, members, part)
            for part in all_targets.split(n_together)
        ]
    paths = SLOT_PATHS if form == "slot" else EDGE_PATHS
    return _labelled(prefilled, chunks, is_defined, paths, form)


def _reference_run(prefilled: Asked, reference) -> tuple[Reference, Prefill]:
    query = prefilled.query
    if reference is None:
        raise ValueError(
            'expected reference=…, as interp.extract.references(…)["blur"] gives it, for '
            'form="slot", got none'
        )
    rows = query.is_visual.nonzero()[:, 0]
    width = prefilled.context.content.shape[-1]
    (checked,) = checked_references({"reference": reference}, len(rows), width).values()
    return checked, prefill_with(query.model, prefilled.context, rows, checked.content)


def _together(
    prefilled: Asked,
    reference_run: Prefill | None,
    members: Bool[Tensor, " token"],
    part: Int[Tensor, " part"],
) -> tuple[Float[Tensor, "part path token"], Float[Tensor, " part"]]:
    """Paths of every token of the set, and the effect of all of them, for some targets."""
    query, context, gauge_rows = prefilled.query, prefilled.context, prefilled.gauge_rows[part]
    rows, tokens, parts = query.rows[part], members.nonzero()[:, 0], query.parts
    chunks = []
    for chunk in _sets(members).split(max(2, _n_variants(query) // len(part))):
        if reference_run is None:
            variants = cutting(cut_masks(chunk, rows, context.is_visible))
            played = replay(query.model, context, rows, variants)
            readout = read_out(parts, gauge_rows, played.final[0])
            split = edge_effects(parts, readout, context, played, rows, variants)
            paths = torch.cat([split.by_layer.sum(dim=-1), split.norm[..., None]], dim=-1)
            chunks.append(rearrange(paths, "t s path -> t path s"))
        else:
            runs = torch.cat([torch.zeros_like(chunk[:1]), chunk]).long()
            variants = reading(runs, len(rows))
            played = replay(query.model, context, rows, variants, others=(reference_run,))
            readout = read_out(parts, gauge_rows, played.final[0])
            runs_of = (context, reference_run)
            paths = slot_effects(parts, readout, runs_of, played, chunk, rows)
            chunks.append(rearrange(paths, "path s t -> t path s"))
    effects = torch.cat(chunks, dim=2)
    spread = effects.new_zeros(*effects.shape[:2], len(members))
    spread[:, :, tokens] = effects[:, :, 1:]
    return spread, effects[:, :, 0].sum(dim=1)


def _sets(members: Bool[Tensor, " token"]) -> Bool[Tensor, "source_set token"]:
    """All members in one set, then each alone."""
    alone = torch.eye(len(members), dtype=torch.bool, device=members.device)[members]
    return torch.cat([members[None], alone])


def _n_variants(query: Query) -> int:
    """How many variants of one row fit in REPLAY_BYTES."""
    parts = query.parts
    return REPLAY_BYTES // (4 * parts.n_layers * parts.n_heads * len(query.tokens.ids))


def _labelled(prefilled: Asked, chunks: list, is_defined, paths, form: str) -> xr.Dataset:
    effect = rearrange(torch.cat([one for one, _ in chunks]), "t path p -> t p path")
    joint = where_defined(torch.cat([one for _, one in chunks]), is_defined.any(dim=1))
    effect = where_defined(effect, is_defined)
    total = effect.sum(dim=-1)
    dataset = xr.Dataset(
        {
            "effect": (("target", "source", "path"), as_array(effect)),
            "total": (("target", "source"), as_array(total)),
            "joint": (("target",), as_array(joint)),
            "patch_interaction": (("target",), as_array(joint - total.nansum(dim=-1))),
            "is_defined": (("target", "source"), as_array(is_defined)),
        },
        coords=coordinates(prefilled.query, prefilled.context),
    )
    attributes = {"gauge": prefilled.gauge, "form": form}
    return finished(prefilled.query, dataset.assign_coords(path=list(paths)), attributes)
