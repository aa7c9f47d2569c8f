"""Saliency maps of one image (METHODS.md 4): what each visual token gives to each target."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from interp.capture.prefill import Prefills
from interp.capture.replay import replay, replays
from interp.data.sample import Sample
from interp.extract.arguments import Foils, Text
from interp.extract.attention_maps import (
    attention_maps,
    looking_rows,
    part_of,
    seen,
    thinking_columns,
)
from interp.extract.dataset import as_array, coordinates, finished
from interp.extract.first_order import check, members, together
from interp.extract.patch_effects import patch_effects
from interp.extract.prefilled import Asked, clean_run, read_in
from interp.extract.question import check_pair, target_chunks
from interp.extract.targets import question
from interp.inputs.prompts import given_text
from interp.model.state import undisturbed
from interp.model.vlm import VLM

USUAL_KINDS = ("direct", "bottleneck")


def maps(
    vlm: VLM,
    sample: Sample,
    *,
    kinds: str | Iterable[str] = USUAL_KINDS,
    only: str | Sequence | None = None,
    max_targets: int | None = None,
    variant: str = "paper",
    reference=None,
    n_nodes: int = 8,
    completion: Text | None = None,
    gauge: str | None = None,
    foils: Foils | None = None,
) -> xr.Dataset:
    """Signed maps of one image, in logits: `map (kind, target, source)`; `interp.maps` reads them.

    Where a map is not defined (no thinking token before the target, a twin with the same token
    there) it is NaN and `is_defined (kind, target)` is False. `visual_attention (target)` is the
    share of attention, mean over layers and heads, that the row predicting the target pays to
    visual tokens.

    Args:
        vlm, sample, completion, foils: as for `ledger`.
        kinds: one or some of "direct" (Eq. 1), "bottleneck" (Saliency-R1 §3.2), "two_hop", "effect"
            (integrated first order), "edge" and "slot" (exact, one cut or swap per patch). By
            default the first, and the second where the text has thinking.
        only: "answer" or "thinking" targets, or some by index; the exact maps cost by target.
        max_targets: of more targets, so many: the answer's first, those of the thinking evenly
            spaced, so are the answer's if there are still too many.
        variant: "paper", or "release" for "direct" and "bottleneck" as the released code computes
            them: see docs/MAPS.md for every difference.
        reference: for "slot", as for `patch_effects`.
        n_nodes: for "effect", as for `first_order`.
        gauge: "centered" by default, "raw" for the release.

    Raises:
        ValueError: as for `ledger`; unknown kinds, targets or variant; a text without a thinking
            span, or cut off before its end token, where a map goes through the thinking.
    """
    check_pair(vlm, sample)
    return unlabelled(
        vlm,
        sample,
        kinds=kinds,
        only=only,
        max_targets=max_targets,
        variant=variant,
        reference=reference,
        n_nodes=n_nodes,
        completion=completion,
        gauge=gauge,
        foils=foils,
    ).labelled()


def unlabelled(
    vlm: VLM,
    sample: Sample,
    *,
    kinds: Iterable[str],
    only=None,
    max_targets: int | None = None,
    variant: str = "paper",
    reference=None,
    n_nodes: int = 8,
    completion: Text | None = None,
    gauge: str | None = None,
    foils: Foils | None = None,
) -> "Scores":
    """`maps` before they have labels."""
    check(("total",), n_nodes)
    kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    if kinds is USUAL_KINDS and not _has_whole_thinking(vlm, sample, completion):
        kinds = ("direct",)
    query, gauge = question(
        vlm,
        sample,
        kinds=kinds,
        only=only,
        max_targets=max_targets,
        variant=variant,
        completion=completion,
        gauge=gauge,
    )
    which = {"positions": query.rows.tolist(), "targets": query.targets.tolist()}
    options = {"gauge": gauge, "foils": foils, "completion": completion, **which}
    with torch.no_grad(), undisturbed(query.model):
        context = clean_run(query)
        prefilled = read_in(query, context, gauge, foils)
        played = replay(query.model, context, query.rows)
    attention = [kind for kind in kinds if kind not in ("effect", *EXACT)]
    maps_by_kind = attention_maps(prefilled, attention, variant, played)
    if "effect" in kinds:
        maps_by_kind["effect"] = _effect(prefilled, n_nodes)
    for kind in kinds:
        if kind in EXACT:
            maps_by_kind[kind] = EXACT[kind](vlm, sample, options, reference)
    maps_by_kind = {kind: maps_by_kind[kind] for kind in kinds}
    return Scores(prefilled, maps_by_kind, variant, seen(prefilled, played))


def _has_whole_thinking(vlm, sample, completion) -> bool:
    """Whether the text has a thinking span that ends."""
    text = given_text(vlm.processor.tokenizer, completion)
    if text is None:
        return sample.thinking is not None
    return text.thinking is not None and text.is_complete


@dataclass(frozen=True)
class Scores:
    """Maps of one sequence before they have labels."""

    prefilled: Asked
    by_kind: dict[str, tuple]
    """Scores, (target, token), and whether each target's map is defined."""
    variant: str
    visual_attention: Float[Tensor, " target"]

    def labelled(self) -> xr.Dataset:
        """As `maps` gives them."""
        return _labelled(self.prefilled, self.by_kind, self.variant, self.visual_attention)


def maps_of(all_prefilled: list[Asked], batch: Prefills, settings: list[dict]) -> list[xr.Dataset]:
    """`maps` of several sequences; see `scores_of`."""
    return [one.labelled() for one in scores_of(all_prefilled, batch, settings)]


def scores_of(all_prefilled: list[Asked], batch: Prefills, settings: list[dict]) -> list[Scores]:
    """Maps of several sequences out of one replay, and one more for "effect".

    All have the first one's kinds, variant and number of nodes.

    "edge" and "slot" have replays of their own and are not made here.
    """
    kinds, variant, n_nodes = (settings[0][name] for name in ("kinds", "variant", "n_nodes"))
    model = all_prefilled[0].query.model
    all_maps: list[dict] = [{} for _ in all_prefilled]
    looked: list = [None] * len(all_prefilled)
    attention = [kind for kind in kinds if kind != "effect"]
    if attention:
        columns = [thinking_columns(one, attention) for one in all_prefilled]
        rows = [
            torch.cat([one.query.rows, looking_rows(mine, variant)])
            for one, mine in zip(all_prefilled, columns, strict=True)
        ]
        with torch.no_grad(), undisturbed(model):
            all_played = batch.kept(rows) if set(attention) == {"bottleneck"} else None
            for number, played in enumerate(all_played or replays(model, batch, rows)):
                prefilled = all_prefilled[number]
                n = len(prefilled.query.rows)
                halves = part_of(played, slice(None, n)), part_of(played, slice(n, None))
                all_maps[number] = attention_maps(prefilled, attention, variant, *halves)
                looked[number] = seen(prefilled, halves[0])
    if "effect" in kinds:
        parts = [
            torch.arange(len(one.query.rows), device=one.query.rows.device) for one in all_prefilled
        ]
        sources = [members(one, "image") for one in all_prefilled]
        chunks = together(all_prefilled, batch, parts, sources, n_nodes, ("total",))
        for number, (first_order, _, ends) in enumerate(chunks):
            all_maps[number]["effect"] = (
                first_order.writes[0].sum(dim=0),
                sources[number].any(dim=1),
            )
            looked[number] = seen(all_prefilled[number], ends)
    return [
        Scores(one, {kind: mine[kind] for kind in kinds}, variant, share)
        for one, mine, share in zip(all_prefilled, all_maps, looked, strict=True)
    ]


def _effect(prefilled: Asked, n_nodes: int) -> tuple[Tensor, Tensor]:
    """First-order effects, some targets at a time, out of the prefill that is there."""
    source, context = members(prefilled, "image"), prefilled.context
    alone = Prefills(context.keys, context.values, [context], [0])
    # A backward pass keeps about three times what a forward does.
    parts = target_chunks(prefilled.query, n_variants=3 * max(1, n_nodes))
    effects = [
        together([prefilled], alone, [part], [source], n_nodes, ("total",))[0][0]
        .writes[0]
        .sum(dim=0)
        for part in parts
    ]
    return torch.cat(effects), source.any(dim=1)


def _edge(vlm, sample, options, _reference) -> tuple:
    return _totals(patch_effects(vlm, sample, **options))


def _slot(vlm, sample, options, reference) -> tuple:
    return _totals(patch_effects(vlm, sample, form="slot", reference=reference, **options))


def _totals(ds: xr.Dataset) -> tuple:
    return ds["total"].where(ds["is_defined"], 0).values, ds["is_defined"].any("source").values


EXACT = {"edge": _edge, "slot": _slot}


def _labelled(prefilled: Asked, maps_by_kind: dict, variant: str, attention: Tensor) -> xr.Dataset:
    scores = [as_array(s) if torch.is_tensor(s) else s for s, _ in maps_by_kind.values()]
    defined = [as_array(d) if torch.is_tensor(d) else d for _, d in maps_by_kind.values()]
    is_defined = np.stack(defined).astype(bool)
    visual = prefilled.query.tokens.is_visual
    values = np.where(is_defined[..., np.newaxis], np.stack(scores) * visual, np.nan)
    dataset = xr.Dataset(
        {
            "map": (("kind", "target", "source"), values),
            "is_defined": (("kind", "target"), is_defined),
            "visual_attention": (("target",), as_array(attention)),
        },
        coords=coordinates(prefilled.query, prefilled.context) | {"kind": list(maps_by_kind)},
    )
    return finished(prefilled.query, dataset, {"gauge": prefilled.gauge, "variant": variant})
