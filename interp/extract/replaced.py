"""Replaced content, for node effects and Shapley values: source sets, references and their runs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Int
from torch import Tensor

from interp.algebra.effects import cut_masks
from interp.capture.prefill import Prefill, prefill_with
from interp.extract.prefilled import Asked
from interp.extract.question import Query
from interp.extract.references import Reference
from interp.extract.source_sets import source_sets, visual_sets


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
    references = checked_references(references, int(is_visual.sum()), context.embeddings.shape[-1])
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
    fits = [r.is_defined(query.places, query.targets.tolist()) for r in references.values()]
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
        if reference.embeddings.ndim != 2 or reference.embeddings.shape[1] != width:
            raise ValueError(
                f"expected embeddings of {width} numbers each in the reference {name!r}, got "
                f"the shape {tuple(reference.embeddings.shape)}; make it for this model"
            )
        if len(reference.embeddings) != n_visual:
            raise ValueError(
                f"expected an embedding for each of the {n_visual} visual tokens in the reference "
                f"{name!r}, got {len(reference.embeddings)}; make it for this sample"
            )
    return checked


def reference_runs(replacements: Cases) -> Iterator[tuple[int, int, Prefill]]:
    """The prefill of every source set with every reference; with the numbers of both."""
    visual = replacements.query.is_visual
    for s, is_source in enumerate(replacements.members):
        rows: Int[Tensor, " row"] = is_source.nonzero()[:, 0]
        for r, reference in enumerate(replacements.references.values()):
            embeddings = reference.embeddings.to(replacements.context.embeddings)[is_source[visual]]
            yield (
                s,
                r,
                prefill_with(replacements.query.model, replacements.context, rows, embeddings),
            )
