"""Saliency maps of one image (METHODS.md 4): what each visual token gives to each target."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from interp import thinking
from interp.capture import Replay, replay, replays
from interp.extract.asked import Asked, read_in
from interp.extract.gradients import first_order, members, together
from interp.extract.ledger import account
from interp.extract.patches import patch_effects
from interp.labelled import as_array, coordinates, finished
from interp.labels import MAP_KINDS, MAP_VARIANTS
from interp.model import VLM, undisturbed
from interp.prefill import Prefills, prefill
from interp.query import REPLAY_BYTES, Query, ask
from interp.readout import Readout, read_out
from interp.sample import Sample

THROUGH_THINKING = ("bottleneck", "two_hop")


def maps(
    vlm: VLM,
    sample: Sample,
    *,
    kinds: tuple[str, ...] = ("direct", "bottleneck"),
    only: str | Sequence[int] | None = None,
    max_targets: int | None = None,
    variant: str = "paper",
    reference=None,
    n_nodes: int = 8,
    completion=None,
    gauge: str | None = None,
    foils=None,
) -> xr.Dataset:
    """Signed maps of one image, in logits: `map (kind, target, source)`; `interp.maps` reads them.

    Where a map is not defined (no thinking token before the target, a twin with the same token
    there) it is 0 and `is_defined (kind, target)` is False. `visual_attention (target)` is the
    share of attention, mean over layers and heads, that the row predicting the target pays to
    visual tokens.

    Args:
        vlm, sample, completion, foils: as for `ledger`.
        kinds: of "direct" (Eq. 1), "bottleneck" (Saliency-R1 §3.2), "two_hop", "effect" (integrated
            first order), "edge" and "slot" (exact, one cut or swap per patch).
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
    query, gauge = question(
        vlm, sample, kinds=kinds, only=only, max_targets=max_targets, variant=variant,
        completion=completion, gauge=gauge,
    )  # fmt: skip
    which = {"positions": query.rows.tolist(), "targets": query.targets.tolist()}
    options = {"gauge": gauge, "foils": foils, "completion": completion, **which}
    with torch.no_grad(), undisturbed(query.model):
        context = prefill(query.model, query.batch, query.rows)
        made = read_in(query, context, gauge, foils)
        played = replay(query.model, context, query.rows)
    attention = [kind for kind in kinds if kind not in EFFECTS]
    found = _attention_maps(made, attention, variant, played)
    for kind in kinds:
        if kind in EFFECTS:
            found[kind] = EFFECTS[kind](vlm, sample, options, reference, n_nodes)
    return _labelled(made, {kind: found[kind] for kind in kinds}, variant, seen(made, played))


def question(
    vlm: VLM, sample: Sample, *, kinds, only, max_targets, variant, completion, gauge
) -> tuple[Query, str]:
    """The targets that are asked for, and the gauge; raises ValueError as `maps`."""
    _check(kinds, variant)
    if completion is not None and not completion.is_complete and set(kinds) & set(THROUGH_THINKING):
        raise ValueError(
            f"{sample.id}: expected a completion that ends with its end token, got one cut off "
            f"after {len(completion.token_ids)} tokens; raise max_new_tokens or leave it out"
        )
    every = ask(vlm, sample, completion=completion)
    chosen = _fewer(every, _chosen(every, only, sample.id), max_targets)
    query = replace(
        every,
        rows=every.rows[chosen],
        targets=every.targets[chosen],
        target_text=tuple(every.target_text[k] for k in chosen),
    )
    return query, gauge or ("raw" if variant == "release" else "centered")


def maps_of(made: list[Asked], batch: Prefills, settings: list[dict]) -> list[xr.Dataset]:
    """`maps` of several sequences out of one replay, and one more for "effect"; of one kind each.

    "edge" and "slot" have replays of their own and are not made here.
    """
    kinds, variant, n_nodes = (settings[0][name] for name in ("kinds", "variant", "n_nodes"))
    model = made[0].query.model
    found: list[dict] = [{} for _ in made]
    looked: list = [None] * len(made)
    attention = [kind for kind in kinds if kind != "effect"]
    if attention:
        columns = [_thinking_columns(one, attention) for one in made]
        rows = [
            torch.cat([one.query.rows, _looking(mine, variant)])
            for one, mine in zip(made, columns, strict=True)
        ]
        with torch.no_grad(), undisturbed(model):
            for number, every in enumerate(replays(model, batch, rows)):
                one = made[number]
                n = len(one.query.rows)
                halves = _part(every, slice(None, n)), _part(every, slice(n, None))
                found[number] = _attention_maps(one, attention, variant, *halves)
                looked[number] = seen(one, halves[0])
    if "effect" in kinds:
        parts = [torch.arange(len(one.query.rows), device=one.query.rows.device) for one in made]
        sources = [members(one, "image") for one in made]
        chunks = together(made, batch, parts, sources, n_nodes, ("total",))
        for number, (one, _, ends) in enumerate(chunks):
            found[number]["effect"] = one.writes[0].sum(dim=0), sources[number].any(dim=1)
            looked[number] = seen(made[number], ends)
    return [
        _labelled(one, {kind: mine[kind] for kind in kinds}, variant, attention)
        for one, mine, attention in zip(made, found, looked, strict=True)
    ]


def seen(made: Asked, played: Replay) -> Float[Tensor, " target"]:
    """The share of attention that each target's row pays to visual tokens, in the clean run."""
    is_visual = torch.from_numpy(made.query.tokens.image >= 0).to(made.query.rows.device)
    shares = [one[0][..., is_visual].float().sum(dim=-1).mean(dim=-1) for one in played.weights]
    return torch.stack(shares).mean(dim=0)


def _part(played: Replay, rows: slice) -> Replay:
    """Some rows of a replay."""
    columns = (played.weights, played.own_values, played.attention, played.ffn)
    return Replay(*([one[:, rows] for one in column] for column in columns), played.final[:, rows])


def _check(kinds, variant) -> None:
    if not kinds or set(kinds) - set(MAP_KINDS):
        raise ValueError(f"expected kinds of {MAP_KINDS}, got {tuple(kinds)}")
    if variant not in MAP_VARIANTS:
        raise ValueError(f"expected a variant of {MAP_VARIANTS}, got {variant!r}")
    released = {"direct", "bottleneck"}
    if variant == "release" and set(kinds) - released:
        raise ValueError(f"expected kinds of {sorted(released)} for the release, got {kinds}")


def _chosen(query: Query, only, name: str) -> list[int]:
    """Indices of the targets that are asked for."""
    roles = [query.tokens.role[row + 1] for row in query.rows.tolist()]
    every = list(range(len(roles)))
    if only is None:
        return every
    if isinstance(only, str):
        found = [k for k in every if roles[k] == only]
        if not found:
            raise ValueError(
                f"{name}: expected targets of the role {only!r}, got {sorted(set(roles))}"
            )
        return found
    if not len(only) or set(only) - set(every):
        raise ValueError(f"{name}: expected targets in 0..{len(every) - 1}, got {list(only)}")
    return list(only)


def _fewer(query: Query, chosen: list[int], limit: int | None) -> list[int]:
    """At most `limit` of the chosen targets, answers before thinking, else evenly spaced."""
    if limit is None or len(chosen) <= limit:
        return chosen
    if limit < 1:
        raise ValueError(f"expected max_targets >= 1, got {limit}")
    is_answer = [query.tokens.role[int(query.rows[k]) + 1] == "answer" for k in chosen]
    answers = [k for k, mine in zip(chosen, is_answer, strict=True) if mine]
    others = [k for k, mine in zip(chosen, is_answer, strict=True) if not mine]
    kept = _evenly(answers, limit)
    return sorted(kept + _evenly(others, limit - len(kept)))


def _evenly(these: list[int], limit: int) -> list[int]:
    at = np.linspace(0, len(these) - 1, min(limit, len(these))).round().astype(int)
    return [these[k] for k in np.unique(at)] if limit else []


# ------------------------------------------------------------------------ from the attention rows


def _attention_maps(
    made: Asked,
    kinds: list[str],
    variant: str,
    played: Replay,
    looking: Replay | None = None,
) -> dict:
    """kind -> (target, token) scores and whether each target's map is defined.

    A replay of the thinking rows is made where it is not given.
    """
    if not kinds:
        return {}
    query = made.query
    with torch.no_grad(), undisturbed(query.model):
        readout = read_out(query.where, made.gauge_rows, played.final[0])
        everywhere = torch.ones(len(query.rows), dtype=torch.bool, device=query.rows.device)
        found = {}
        if "direct" in kinds:
            if variant == "release":
                weights = [one[0] for one in played.weights]
                found["direct"] = _released(made, played, weights), everywhere
            else:
                every = torch.arange(len(query.rows), device=query.rows.device)
                scores = account(made, every, played, "tokens", False)["direct"][1]
                found["direct"] = scores, everywhere
        through = [kind for kind in kinds if kind in THROUGH_THINKING]
        if through:
            found |= _through_thinking(made, played, readout, through, variant, looking)
    return found


def _through_thinking(
    made: Asked,
    played: Replay,
    readout: Readout,
    kinds: list[str],
    variant: str,
    looking: Replay | None = None,
) -> dict:
    """Maps that are sums over thinking tokens, some of them at a time unless they are played."""
    query, where, context = made.query, made.query.where, made.context
    columns = _thinking_columns(made, kinds)
    size = max(1, REPLAY_BYTES // (4 * where.n_layers * where.n_heads * len(query.tokens.ids)))
    size = size if looking is None else len(columns)
    totals = dict.fromkeys(kinds, 0.0)
    products = [0.0] * where.n_layers
    for part in columns.split(size):
        rows = _looking(part, variant)
        hops = thinking.Hops(
            targets=played,
            thinking=replay(query.model, context, rows) if looking is None else looking,
            embeddings=context.embeddings[rows],
            columns=part,
            is_between=part < query.rows[:, None],
        )
        if variant == "release":
            products = [one + thinking.product(hops, n) for n, one in enumerate(products)]
            continue
        if "bottleneck" in kinds:
            totals["bottleneck"] = totals["bottleneck"] + thinking.bottleneck(
                readout, context, hops
            )
        if "two_hop" in kinds:
            totals["two_hop"] = totals["two_hop"] + thinking.two_hops(where, readout, context, hops)
    if variant == "release":
        totals["bottleneck"] = _released(made, played, products)
    is_defined = (columns < query.rows[:, None]).any(dim=1)
    return {kind: (scores, is_defined) for kind, scores in totals.items()}


def _looking(columns: Tensor, variant: str) -> Tensor:
    """Rows at which thinking tokens look: their own, or in the release those that predict them."""
    return columns - 1 if variant == "release" else columns


def _thinking_columns(made: Asked, kinds: list[str]) -> Tensor:
    """Positions of the thinking tokens; none where no map goes through them."""
    roles = np.array(made.query.tokens.role)
    is_asked = bool(set(kinds) & set(THROUGH_THINKING))
    columns = np.flatnonzero((roles == "thinking") & is_asked)
    if is_asked and len(columns) == 0:
        raise ValueError(
            f"{made.query.attributes['sample']}: expected a text with a thinking span for maps of "
            f"{THROUGH_THINKING}, got none; leave the sample out or ask for other kinds"
        )
    return torch.from_numpy(columns).to(made.query.rows.device)


def _released(made: Asked, played: Replay, weights: list) -> Float[Tensor, "target token"]:
    """The release's scores of the visual tokens, one target after the other."""
    query, dtype = made.query, made.gauge_rows.dtype
    sources = torch.from_numpy(np.flatnonzero(query.tokens.image >= 0)).to(query.rows.device)
    found = made.gauge_rows.new_zeros(len(query.rows), len(query.tokens.ids))
    for k in range(len(query.rows)):
        mine = [one[k : k + 1][..., sources] for one in weights]
        written = thinking.released_writes(query.where, made.context, mine, sources, dtype)
        found[k : k + 1, sources] = thinking.as_released(
            query.where, made.gauge_rows[k : k + 1], played.final[0][k : k + 1], written
        )
    return found


# ---------------------------------------------------------------------------------- from effects


def _effect(vlm, sample, options, _reference, n_nodes) -> tuple:
    ds = first_order(vlm, sample, n_nodes=n_nodes, **options)
    return ds["first_order"].isel(objective=0).sum("layer").values, ds["is_defined"].values


def _edge(vlm, sample, options, _reference, _n_nodes) -> tuple:
    ds = patch_effects(vlm, sample, **options)
    return ds["total"].values, ds["is_defined"].any("source").values


def _slot(vlm, sample, options, reference, _n_nodes) -> tuple:
    ds = patch_effects(vlm, sample, form="slot", reference=reference, **options)
    return ds["total"].values, ds["is_defined"].any("source").values


EFFECTS = {"effect": _effect, "edge": _edge, "slot": _slot}


def _labelled(made: Asked, found: dict, variant: str, attention: Tensor) -> xr.Dataset:
    scores = [as_array(s) if torch.is_tensor(s) else s for s, _ in found.values()]
    defined = [as_array(d) if torch.is_tensor(d) else d for _, d in found.values()]
    is_defined = np.stack(defined).astype(bool)
    visual = made.query.tokens.image >= 0
    values = np.stack(scores) * is_defined[..., np.newaxis] * visual
    dataset = xr.Dataset(
        {
            "map": (("kind", "target", "source"), values),
            "is_defined": (("kind", "target"), is_defined),
            "visual_attention": (("target",), as_array(attention)),
        },
        coords=coordinates(made.query, made.context) | {"kind": list(found)},
    )
    return finished(made.query, dataset, {"gauge": made.gauge, "variant": variant})
