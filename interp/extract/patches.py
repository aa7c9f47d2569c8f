"""Exact patch maps: every visual token as its own source set (METHODS.md 3.5)."""

import torch
import xarray as xr
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from interp.capture import replay
from interp.effects import cut_masks, edge_effects
from interp.extract.cases import checked_references
from interp.labelled import as_array, coordinates, finished
from interp.labels import EDGE_PATHS, SLOT_PATHS
from interp.model import undisturbed
from interp.node_effects import slot_effects
from interp.prefill import Prefill, prefill, prefill_with
from interp.query import REPLAY_BYTES, Query, ask, foil_ids, source_sets
from interp.readout import check_gauge, gauge_rows, read_out
from interp.rows import cutting, reading

FORMS = ("edge", "slot")


def patch_effects(
    model,
    inputs,
    *,
    form: str = "edge",
    reference=None,
    source="image",
    completion=None,
    positions=None,
    targets=None,
    gauge: str = "centered",
    foils=None,
) -> xr.Dataset:
    """The exact effect of every single token of a visual set, split into paths (METHODS.md 3.5).

    total = Σ over path of effect, by target and source; patches need not add up to `joint`, the
    effect of all of them, and `patch_interaction` is the difference.

    Args:
        model, inputs, completion, positions, targets, gauge, foils: as for `ledger`.
        form: "edge", the token's edges into the row cut (3.1); "slot", its key and value swapped
            for those of the reference run, which is nearer to what occlusion measures.
        reference: for "slot", a Reference or visual embeddings.
        source: name of a visual source set, or its rows.

    Raises:
        ValueError: as for `ledger`; unknown form; a missing or unfit reference; rows not visual.
    """
    if form not in FORMS:
        raise ValueError(f"expected a form of {FORMS}, got {form!r}")
    check_gauge(gauge, foils)
    query = ask(model, inputs, completion=completion, positions=positions, targets=targets)
    with torch.no_grad(), undisturbed(query.model):
        context = prefill(query.model, query.batch, query.rows)
        sources = [source] if isinstance(source, str) else {"source": source}
        members = source_sets(query, sources, context.is_sink)[1][0]
        if (members.cpu().numpy() & (query.tokens.image < 0)).any():
            raise ValueError("expected a source set of visual rows, got others; choose their rows")
        other = _reference_run(query, context, reference) if form == "slot" else None
        foils = foil_ids(query, gauge, foils, context.logits)
        rows_g = gauge_rows(query.where.output_embedding, query.targets, gauge, foils)
        found = [
            _one_target(query, context, other, members, rows_g[k : k + 1], k)
            for k in range(len(query.rows))
        ]
    paths = SLOT_PATHS if form == "slot" else EDGE_PATHS
    return _labelled(query, context, found, members, paths, {"gauge": gauge, "form": form})


def _reference_run(query: Query, context: Prefill, reference) -> Prefill:
    rows = torch.from_numpy(query.tokens.image >= 0).to(query.rows.device).nonzero()[:, 0]
    named = {} if reference is None else {"reference": reference}
    (one,) = checked_references(named, len(rows)).values()
    return prefill_with(query.model, context, rows, one.embeddings)


def _one_target(
    query: Query, context: Prefill, other: Prefill | None, members, rows_g, k: int
) -> tuple[Float[Tensor, "path token"], Float[Tensor, ""]]:
    """Paths of every token of the set, and the effect of all of them, for one target."""
    rows, tokens = query.rows[k : k + 1], members.nonzero()[:, 0]
    sets: Bool[Tensor, "source_set token"] = torch.zeros(
        1 + len(tokens), len(members), dtype=torch.bool, device=members.device
    )
    sets[0] = members
    sets[torch.arange(1, len(sets)), tokens] = True
    where, parts = query.where, []
    size = max(2, REPLAY_BYTES // (4 * where.n_layers * where.n_heads * len(members)))
    for chunk in sets.split(size):
        if other is None:
            variants = cutting(cut_masks(chunk, rows, context.is_visible))
            played = replay(query.model, context, rows, variants)
            readout = read_out(where, rows_g, played.final[0])
            split = edge_effects(where, readout, context, played, rows, variants)
            paths = torch.cat([split.by_layer.sum(dim=-1), split.norm[..., None]], dim=-1)
            parts.append(rearrange(paths, "1 s path -> path s"))
        else:
            runs = torch.cat([torch.zeros_like(chunk[:1]), chunk]).long()
            played = replay(query.model, context, rows, reading(runs, 1), others=(other,))
            readout = read_out(where, rows_g, played.final[0])
            runs_of = (context, other)
            parts.append(slot_effects(where, readout, runs_of, played, chunk, rows)[..., 0])
    found = torch.cat(parts, dim=1)
    spread = found.new_zeros(len(found), len(members))
    spread[:, tokens] = found[:, 1:]
    return spread, found[:, 0].sum()


def _labelled(query, context, found, members, paths, attributes) -> xr.Dataset:
    effect = rearrange(torch.stack([one for one, _ in found]), "t path p -> t p path")
    joint = torch.stack([one for _, one in found])
    total = effect.sum(dim=-1)
    before = cut_masks(members[None], query.rows, context.is_visible)[0]
    dataset = xr.Dataset(
        {
            "effect": (("target", "source", "path"), as_array(effect)),
            "total": (("target", "source"), as_array(total)),
            "joint": (("target",), as_array(joint)),
            "patch_interaction": (("target",), as_array(joint - total.sum(dim=-1))),
            "is_defined": (("target", "source"), as_array(before)),
        },
        coords=coordinates(query, context),
    )
    return finished(query, dataset.assign_coords(path=list(paths)), attributes)
