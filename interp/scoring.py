"""The saliency score of a text (METHODS.md 5): a reward pays it, an analysis measures it.

    scores(vlm, [(sample, completion), …], rule="direct")

One function for both, so that what is trained on and what is reported cannot differ.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr

from interp.data.sample import Sample
from interp.extract import each
from interp.extract.dataset import as_array
from interp.extract.each import Forward, each_unlabelled
from interp.extract.maps import EXACT
from interp.extract.sharing import sharing
from interp.inputs.completions import Completion
from interp.inputs.tokens import Tokens
from interp.maps.alignment import alignment, alignment_scores
from interp.maps.grid import arranged, holistic
from interp.maps.map import Map
from interp.model.state import undisturbed
from interp.model.vlm import VLM
from interp.vocabulary import describe

log = logging.getLogger("interp.scoring")


@dataclass(frozen=True)
class Rule:
    """Which map is scored, over which targets."""

    kind: str
    """One of `interp.vocabulary.MAP_KINDS`."""
    role: str | None
    """Targets of one role, or of both."""


RULES = {
    "direct": Rule("bottleneck", "answer"),  # Saliency-R1's: Eq. 1 through the thinking
    "effect": Rule("effect", None),
    "edge": Rule("edge", "answer"),  # exact; about a decoder's forward per target
}


@dataclass(frozen=True)
class Saliency:
    """The map of one text under a rule."""

    map: xr.DataArray
    """Over (row, column), not negative."""
    visual_attention: float
    """Share of attention on visual tokens, mean over the targets."""


def saliencies(
    vlm: VLM,
    texts: Sequence[tuple[Sample, Completion | None]],
    *,
    rule: str = "direct",
    max_targets: int = 64,
    n_nodes: int = 2,
    **batching,
) -> list[Saliency | str]:
    """Each text's map, or the reason for which there is none, which is logged too.

    Args:
        vlm: the model as it is now.
        texts: samples, each with a model's text, or None for the sample's own.
        rule: "direct", the paper's holistic bottleneck map of the answer; "effect", the
            first-order effects on answer and thinking; or "edge", the exact edge effects on the
            answer. ReLU per target, then the sum.
        max_targets: of a text; see `interp.extract.maps`.
        n_nodes: of the quadrature of "effect", of which a score needs fewer than a map.
        batching: max_memory and forward, as for `interp.extract.each`; a forward is told the
            numbers of `texts`.

    Raises:
        ValueError: an unknown rule.
    """
    if rule not in RULES:
        raise ValueError(f"expected a rule of {tuple(RULES)}, got {rule!r}")
    kind, role = RULES[rule].kind, RULES[rule].role
    options = {"kinds": (kind,), "only": role, "max_targets": max_targets, "n_nodes": n_nodes}
    results: list[Saliency | str] = []
    found = _exact if kind in EXACT else _quick
    while len(results) < len(texts):
        requests = [(sample, {"completion": text}) for sample, text in texts[len(results) :]]
        if batching.get("forward"):
            options["forward"] = _after(batching["forward"], len(results))
        try:
            # One policy reads all: its identity and each image's inputs are looked up once.
            with sharing(), undisturbed(vlm.model):
                for one in found(vlm, requests, kind, role, batching | options):
                    results.append(one)
        except ValueError as error:  # of the next one; all before it are there
            log.warning("no map of %s (%s): %s", rule, vlm.adapter or vlm.name, error)
            results.append(str(error))
    return results


def _exact(vlm: VLM, requests: list, kind: str, role: str | None, options: dict) -> Iterator:
    """Maps of exact effects, by way of the datasets that show them."""
    for maps in each("maps", vlm, requests, **options):
        attention = float(maps["visual_attention"].mean())
        yield Saliency(holistic(maps, kind, role), attention)


def _quick(vlm: VLM, requests: list, kind: str, _role, options: dict) -> Iterator:
    """The same as `holistic` of a dataset, without making one."""
    for scores in each_unlabelled(vlm, requests, **options):
        values, is_defined = scores.by_kind[kind]
        tokens = scores.prefilled.query.tokens
        here = torch.from_numpy(tokens.is_visual).to(values.device)
        total = as_array(values[is_defined][:, here].clamp(min=0).sum(dim=0))
        places = (one[tokens.is_visual] for one in (tokens.view, tokens.row, tokens.column))
        yield Saliency(_on_one_grid(tokens, total, *places), float(scores.visual_attention.mean()))


def _on_one_grid(tokens: Tokens, total: np.ndarray, *places: np.ndarray) -> Map:
    images = np.unique(tokens.image[tokens.is_visual]).tolist()
    if images != [0]:
        raise ValueError(f"expected tokens of one image, got {len(images)} images")
    grid = arranged(total, *places)
    coords = {"row": np.arange(grid.shape[0]), "column": np.arange(grid.shape[1])}
    return Map(grid, dims=("row", "column"), coords=coords, name="map", attrs={"units": "logit"})


def _after(forward: Forward, n_before: int) -> Forward:
    """The same for what comes behind so many texts."""
    return lambda queries, numbers: forward(queries, [n_before + k for k in numbers])


def scores(
    vlm: VLM, texts: Sequence[tuple[Sample, Completion | None]], **options
) -> list[xr.Dataset | str]:
    """How much of each text's map lies on its sample's boxes, or why that cannot be said.

    Args:
        vlm, texts, options: as for `saliencies`.

    Returns:
        For each text what `interp.maps.alignment.alignment` says, with `visual_attention`, the mean
        over the targets; or the reason for which it is left out.

    Raises:
        ValueError: an unknown rule.
    """
    results = saliencies(vlm, texts, **options)
    return [
        result if isinstance(result, str) else score(result, sample)
        for result, (sample, _) in zip(results, texts, strict=True)
    ]


def numbers(saliency: Saliency, sample: Sample) -> dict | str:
    """`score` as bare numbers."""
    if sample.boxes is None:
        return f"{sample.id}: expected boxes to score a map against, got none"
    scored = alignment_scores(saliency.map.values, sample.boxes)
    return scored | {"visual_attention": saliency.visual_attention}


def score(saliency: Saliency, sample: Sample) -> xr.Dataset | str:
    """The alignment of one map with its sample's boxes; a reason where it has none."""
    if sample.boxes is None:
        return f"{sample.id}: expected boxes to score a map against, got none"
    dataset = alignment(saliency.map, sample.boxes)
    return describe(dataset.assign(visual_attention=saliency.visual_attention))
