"""Extraction from many samples, batches packed into a budget of memory."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from inspect import signature

import torch
import xarray as xr
from torch import nn

from interp.algebra.readout import check_foils_are_read
from interp.capture.checks import check_length
from interp.capture.memory import Load, is_out_of_memory, largest, needed
from interp.capture.prefill import Prefills, prefills
from interp.data.sample import Sample
from interp.extract.attention_maps import THROUGH_THINKING
from interp.extract.effects import check_mode, effects, effects_of
from interp.extract.first_order import first_order, first_orders_of
from interp.extract.ledger import check_detail, ledger, ledgers_of
from interp.extract.maps import Scores, maps, maps_of, scores_of, unlabelled
from interp.extract.node_effects import node_effects
from interp.extract.origins import origins
from interp.extract.patch_effects import patch_effects
from interp.extract.prefilled import read_in
from interp.extract.question import REPLAY_BYTES, Query, ask
from interp.extract.shapley import shapley
from interp.extract.targets import question
from interp.model.state import undisturbed
from interp.model.vlm import VLM
from interp.vocabulary import SINKLESS, SOURCE_SETS

BATCHED = {
    "ledger": (ledger, ledgers_of),
    "effects": (effects, effects_of),
    "first_order": (first_order, first_orders_of),
    "maps": (maps, maps_of),
}
UNLABELLED = {"maps": (unlabelled, scores_of)}
ALONE = {
    "node_effects": node_effects,
    "shapley": shapley,
    "origins": origins,
    "patch_effects": patch_effects,
}
OWN = (
    "completion",
    "positions",
    "targets",
    "only",
    "foils",
    "source",
    "sources",
    "reference",
    "references",
)
TOGETHER = ("ledger", "effects", "first_order")  # ask the same question of a sample
# The image and the evidence come without their sinks too, and before all sets the clean run.
Forward = Callable[[list[Query], list[int]], Prefills]
"""From queries, and which of the samples each is of, to their prefills."""
MOST_VARIANTS = 1 + len(SOURCE_SETS) + len(("image" + SINKLESS, "evidence" + SINKLESS))


def each(
    name: str | list[tuple[str, dict]],
    vlm: VLM | nn.Module,
    samples: Iterable,
    *,
    max_memory: int = 2 * 2**30,
    forward: Forward | None = None,
    **options,
) -> Iterator[xr.Dataset] | Iterator[tuple[xr.Dataset, ...]]:
    """One dataset per sample, in order, as `interp.extract.<name>` gives it for that sample alone.

    "ledger", "effects", "first_order" and "maps" (without "edge" and "slot") take as many samples
    through one padded forward and one replay as `max_memory` holds. The others are made mostly of
    replays and second runs of their own, and take one sample at a time whatever `max_memory` is.

    Args:
        name: of an extraction; or several with their options, [("ledger", {}), ("effects",
            {"mode": "mean"}), …], which then share one forward: a tuple per sample.
        vlm: a loaded model; or a Hugging Face model, whose samples are the processor's batches of
            one sequence each, with positions= among their own options.
        samples: samples, or (sample, options) where a sample has options of its own: completion=,
            positions=, targets=, foils=, sources=, reference= or references=.
        max_memory: bytes that a batch may need besides the model, as `interp.capture.memory`
            estimates them.
        forward: makes the prefills of a batch, in place of a forward of its own; of what goes
            through one padded forward alone.
        options: of the extraction, the same for all samples.

    Raises:
        ValueError: an unknown name; an option that cannot be one sample's own; several that cannot
            share a forward; and when its sample comes up, all before it done: one that alone needs
            more than `max_memory`, and what the extraction raises.
    """
    calls = [(name, {})] if isinstance(name, str) else [(n, _kept(own)) for n, own in name]
    options = _kept(options)
    for extraction, own in calls:
        if extraction not in (*BATCHED, *ALONE):
            raise ValueError(f"expected an extraction of {(*BATCHED, *ALONE)}, got {extraction!r}")
        check_detail((options | own).get("detail", "full"))
        check_mode((options | own).get("mode", "zero"))
    if isinstance(samples, Sample):
        raise ValueError("expected samples, got one Sample; pass [sample], or call it alone")
    pairs = map(_pair, samples)
    if not isinstance(name, str):
        if not calls or not {one for one, _ in calls} <= set(TOGETHER):
            raise ValueError(f"expected extractions of {TOGETHER} to share a forward, got {name}")
        pairs = ((sample, options | own) for sample, own in pairs)
        return _batched(calls, vlm, pairs, max_memory, forward or _prefilled)
    kinds = set(options.get("kinds", ()))
    if name == "maps" and kinds & {"edge", "slot"}:
        return (maps(vlm, sample, **options | own) for sample, own in pairs)
    if name in ALONE:
        return (ALONE[name](vlm, sample, **options | own) for sample, own in pairs)
    pairs = ((sample, options | own) for sample, own in pairs)
    batched = _batched(calls, vlm, pairs, max_memory, forward or _prefilled)
    return (found for (found,) in batched)


def each_unlabelled(
    vlm: VLM,
    samples: Iterable,
    *,
    max_memory: int = 2 * 2**30,
    forward: Forward | None = None,
    **options,
) -> Iterator[Scores]:
    """`each("maps", …)` before its maps have labels, for a reward that has no time for them.

    Args:
        vlm, samples, max_memory, forward: as for `each`.
        options: of `interp.extract.maps`, no kind of exact maps among them.

    Raises:
        ValueError: as `each`.
    """
    pairs = ((sample, options | own) for sample, own in map(_pair, samples))
    calls = [("maps", {})]
    batched = _batched(calls, vlm, pairs, max_memory, forward or _prefilled, UNLABELLED)
    return (found for (found,) in batched)


def _pair(item) -> tuple[Sample | Mapping, dict]:
    sample, own = item if isinstance(item, tuple) else (item, {})
    if set(own) - set(OWN):
        name = sample.id if isinstance(sample, Sample) else "a batch"
        raise ValueError(
            f"{name}: expected options of a sample's own out of {OWN}, got {sorted(own)}; "
            "pass the others to all samples alike"
        )
    return sample, _kept(own)


def _kept(options: Mapping) -> dict:
    """Options that can be read more than once: a generator is used up by the first look at it."""
    kept = {k: tuple(v) if isinstance(v, Iterator) else v for k, v in options.items()}
    if isinstance(kept.get("kinds"), str):
        kept["kinds"] = (kept["kinds"],)
    return kept


@dataclass(frozen=True)
class _Waiting:
    """A sample that will be computed with the next batch."""

    number: int
    """Which of the samples it is."""
    query: Query
    settings: list[dict]
    """Settings of every call, by the names of its arguments."""
    load: Load


def _prefilled(queries: list[Query], _numbers: list[int]) -> Prefills:
    model = queries[0].model
    return prefills(model, [q.batch for q in queries], [q.rows for q in queries])


def _batched(
    calls, vlm: VLM | nn.Module, pairs, max_memory: int, forward: Forward, ways=None
) -> Iterator[tuple]:
    """Packs samples in order; a batch is computed when the next one would not fit."""
    ways, waiting = ways or BATCHED, []
    model = vlm.model if isinstance(vlm, VLM) else vlm
    size = next(model.parameters()).element_size()
    for number, (sample, options) in enumerate(pairs):
        try:
            packed = _packed(number, calls, vlm, sample, options, ways)
            fits = _is_within(max_memory, packed.query, packed.load, size)
        except ValueError:
            yield from _computed(calls, waiting, forward, ways)
            raise
        loads = [other.load for other in waiting]
        if not fits or needed(packed.query.parts, [*loads, packed.load], size) > max_memory:
            yield from _computed(calls, waiting, forward, ways)
            waiting = []
        if fits:
            waiting.append(packed)
        else:
            yield tuple(ways[name][0](vlm, sample, **own | options) for name, own in calls)
    yield from _computed(calls, waiting, forward, ways)


def _packed(
    number: int, calls, vlm: VLM | nn.Module, sample: Sample | Mapping, options: dict, ways
) -> _Waiting:
    """A sample's question, with settings and load."""
    all_settings = []
    for name, own in calls:
        bound = signature(ways[name][0]).bind(vlm, sample, **own | options)
        bound.apply_defaults()
        all_settings.append(bound.kwargs)
    settings = all_settings[0]
    if "kinds" in settings:
        names = ("kinds", "only", "max_targets", "variant", "completion", "gauge")
        query, settings["gauge"] = question(vlm, sample, **{key: settings[key] for key in names})
    else:
        names = ("completion", "positions", "targets")
        query = ask(vlm, sample, **{key: settings[key] for key in names})
    check_length(query.parts, len(query.tokens.ids))
    load = largest([_load(query, one) for one in all_settings])
    return _Waiting(number, query, all_settings, load)


def _is_within(max_memory: int, query: Query, load: Load, size: int) -> bool:
    """True if the sample fits a batch; False if only alone, in chunks of targets.

    Raises:
        ValueError: it does not fit at all.
    """
    least = min(
        needed(query.parts, [load], size),
        needed(query.parts, [replace(load, n_variants=0)], size) + REPLAY_BYTES,
    )
    if least > max_memory:
        raise ValueError(
            f"{query.attributes.get('sample', 'a batch')}: expected a sample that needs at most "
            f"max_memory={max_memory} bytes, got {least} for {load.n_tokens} tokens and "
            f"{load.n_targets} targets; raise max_memory, shrink the image or pass positions="
        )
    return needed(query.parts, [load], size) <= max_memory


def _load(query: Query, settings: dict) -> Load:
    sources = settings.get("sources")
    n_sets = MOST_VARIANTS - 1 if sources is None else len(list(sources))
    n_variants = 1 + n_sets if "mode" in settings else 1
    kinds = settings.get("kinds", ("effect",))
    if "n_nodes" in settings and "effect" in kinds:
        # A backward pass keeps about three times what a forward does.
        n_variants = 3 * max(1, settings["n_nodes"])
    through = set(settings.get("kinds", ())) & set(THROUGH_THINKING)
    n_thinking = query.tokens.role.count("thinking") if through else 0
    return Load(
        n_tokens=len(query.tokens.ids),
        n_targets=len(query.rows) + n_thinking,
        n_variants=n_variants,
        is_full=settings.get("detail") == "full",
    )


def _computed(calls, waiting: list[_Waiting], forward: Forward, ways) -> Iterator[tuple]:
    """The results of one batch; of a batch with a bad sample in it, those before it, alone."""
    try:
        yield from _at_once(calls, waiting, forward, ways)
    except (ValueError, RuntimeError) as error:
        if len(waiting) == 1 or is_out_of_memory(error):
            raise
        for packed in waiting:
            yield from _at_once(calls, [packed], forward, ways)


def _at_once(calls, waiting: list[_Waiting], forward: Forward, ways) -> list[tuple]:
    if not waiting:
        return []
    queries = [one.query for one in waiting]
    model = queries[0].model
    with torch.no_grad(), undisturbed(model):
        batch = forward(queries, [one.number for one in waiting])
        columns = []
        for (name, _), *settings in zip(calls, *(one.settings for one in waiting), strict=True):
            for own in settings:
                check_foils_are_read(own["gauge"], own["foils"])
            all_prefilled = [
                read_in(query, context, own["gauge"], own["foils"])
                for query, context, own in zip(queries, batch.sequences, settings, strict=True)
            ]
            columns.append(ways[name][1](all_prefilled, batch, settings))
    return list(zip(*columns, strict=True))
