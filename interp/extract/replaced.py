"""Replaced content, for node effects and Shapley values: source sets, references and their runs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Int
from torch import Tensor

from interp.algebra.effects import cut_masks
from interp.capture.prefill import Prefill, prefills_with
from interp.capture.replay import Replay, replay
from interp.capture.slots import reading
from interp.extract.prefilled import Asked
from interp.extract.question import Query
from interp.extract.references import Reference
from interp.extract.sharing import kept
from interp.extract.source_sets import source_sets, visual_sets

TOKENS_AT_ONCE = 2**10  # of reference runs that ride in one forward: a long one fills it alone
KEPT_TOKENS = 2**13  # of reference runs that `sharing` keeps: a large model's would fill memory


@dataclass(frozen=True)
class Cases:
    """Targets of one sequence, and what is replaced by what."""

    asked: Asked
    names: tuple[str, ...]
    """Names of the source sets."""
    members: Bool[Tensor, "source_set token"]
    references: Mapping[str, Reference]
    before: Bool[Tensor, "source_set target token"]
    """Members of the set that stand before each target's row, S ∩ {p < i}."""
    is_defined: Bool[Tensor, "target source_set reference"]

    @property
    def query(self) -> Query:
        """The question whose targets are explained."""
        return self.asked.query

    @property
    def context(self) -> Prefill:
        """The clean run."""
        return self.asked.context


def cases(prefilled: Asked, sources, references) -> Cases:
    """The checked source sets and references of a question.

    Raises:
        ValueError: no references, one that does not fit the visual tokens, a set of other rows.
    """
    query, context = prefilled.query, prefilled.context
    is_visual = query.is_visual
    references = checked_references(references, int(is_visual.sum()), context.content.shape[-1])
    if sources is None:
        sources = visual_sets(query, context.is_sink)
    names, members = source_sets(query, sources, context.is_sink)
    for name, is_source in zip(names, members, strict=True):
        if (is_source & ~is_visual).any():
            raise ValueError(
                f"expected source sets of visual rows to replace, got other rows in {name!r}; "
                "sets of text have edge effects only"
            )
    before = cut_masks(members, query.rows, context.is_visible)
    fits = [r.is_defined(query) for r in references.values()]
    fits = rearrange(torch.tensor(fits, device=query.rows.device), "r t -> t 1 r")
    is_defined = rearrange(before.any(dim=-1), "s t -> t s 1") & fits
    return Cases(prefilled, names, members, references, before, is_defined)


def checked_references(references, n_visual: int, width: int) -> dict[str, Reference]:
    """References by name; raises ValueError without any, or for one that does not fit."""
    if not references:
        raise ValueError(
            "expected references={name: …}, as interp.extract.references makes them, got none"
        )
    checked = {
        name: one if isinstance(one, Reference) else Reference(one)
        for name, one in references.items()
    }
    for name, reference in checked.items():
        if reference.content.ndim != 2 or reference.content.shape[1] != width:
            raise ValueError(
                f"expected {width} numbers for each visual token in the reference {name!r}, got "
                f"the shape {tuple(reference.content.shape)}; interp.extract.references makes it "
                "for this model, with all that its image brings into the layers"
            )
        if len(reference.content) != n_visual:
            raise ValueError(
                f"expected content for each of the {n_visual} visual tokens in the reference "
                f"{name!r}, got {len(reference.content)}; make it for this sample"
            )
    return checked


@dataclass(frozen=True)
class Case:
    """One source set with one reference."""

    source_set: int
    reference: int
    run: Prefill
    """The reference run."""


def grouped_cases(replacements: Cases) -> Iterator[list[Case]]:
    """Every source set with every reference and its run, several at once of a short sequence."""
    at_once = max(1, TOKENS_AT_ONCE // len(replacements.query.tokens.ids))
    jobs = [
        (s, r) for s in range(len(replacements.names)) for r in range(len(replacements.references))
    ]
    is_kept = len(replacements.query.tokens.ids) * len(jobs) <= KEPT_TOKENS
    for start in range(0, len(jobs), at_once):
        some = jobs[start : start + at_once]
        yield [
            Case(s, r, run)
            for (s, r), run in zip(some, _runs(replacements, some, is_kept), strict=True)
        ]


def _runs(replacements: Cases, jobs: list[tuple[int, int]], is_kept: bool) -> list[Prefill]:
    """The reference runs of some cases, in one forward; inside `sharing`, those that are there."""
    context, visual = replacements.context, replacements.query.is_visual
    references = list(replacements.references.values())
    store, keys, replaced = kept() if is_kept else None, [], []
    for s, r in jobs:
        is_source, content = replacements.members[s], references[r].content
        rows: Int[Tensor, " row"] = is_source.nonzero()[:, 0]
        replaced.append((rows, content.to(context.content)[is_source[visual]]))
        owners = (context.content, content)
        keys.append((owners, ("reference run", *map(id, owners), tuple(rows.tolist()))))
    if store is not None and all(key in store for _, key in keys):
        return [store[key][1] for _, key in keys]
    runs = prefills_with(replacements.query.model, context, replaced)
    if store is not None:
        store.update({key: (own, run) for (own, key), run in zip(keys, runs, strict=True)})
    return runs


def replayed(
    replacements: Cases,
    rows: Int[Tensor, " target"],
    cases: list[Case],
    runs: list[Int[Tensor, "_ token"]],
) -> list[Replay]:
    """The replay of each case, all in one.

    Args:
        replacements: whose clean run the rows are of.
        rows: to repeat.
        cases: whose reference runs slots are read from.
        runs: of each case, which run each of its variants reads each slot from: 0 the clean one, 1
            the reference.
    """
    numbered = torch.cat([run * number for number, run in enumerate(runs, start=1)])
    others = tuple(case.run for case in cases)
    variants = reading(numbered, len(rows))
    played = replay(replacements.query.model, replacements.context, rows, variants, others)
    parts, start = [], 0
    for run in runs:
        parts.append(_variants_of(played, slice(start, start + len(run))))
        start += len(run)
    return parts


def _variants_of(played: Replay, variants: slice) -> Replay:
    return played.of(lambda tensor: tensor[variants])
