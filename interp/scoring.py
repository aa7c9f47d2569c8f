"""The saliency score of a text (METHODS.md 5): a reward pays it, an analysis measures it.

    scores(vlm, [(sample, completion), …], rule="direct")

One function for both, so that what is trained on and what is reported cannot differ.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import xarray as xr

from interp.data.sample import Sample
from interp.extract import each
from interp.inputs.completions import Completion
from interp.maps.alignment import alignment
from interp.maps.grid import holistic
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
    max_memory: int = 2 * 2**30,
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
        max_memory: as for `interp.extract.each`.

    Raises:
        ValueError: an unknown rule.
    """
    if rule not in RULES:
        raise ValueError(f"expected a rule of {tuple(RULES)}, got {rule!r}")
    kind, role = RULES[rule].kind, RULES[rule].role
    options = {"kinds": (kind,), "only": role, "max_targets": max_targets, "n_nodes": n_nodes}
    results: list[Saliency | str] = []
    while len(results) < len(texts):
        requests = [(sample, {"completion": text}) for sample, text in texts[len(results) :]]
        try:
            for maps in each("maps", vlm, requests, max_memory=max_memory, **options):
                attention = float(maps["visual_attention"].mean())
                results.append(Saliency(holistic(maps, kind, role), attention))
        except ValueError as error:  # of the next one; all before it are there
            log.warning("no map of %s (%s): %s", rule, vlm.adapter or vlm.name, error)
            results.append(str(error))
    return results


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


def score(saliency: Saliency, sample: Sample) -> xr.Dataset | str:
    """The alignment of one map with its sample's boxes; a reason where it has none."""
    if sample.boxes is None:
        return f"{sample.id}: expected boxes to score a map against, got none"
    dataset = alignment(saliency.map, sample.boxes)
    return describe(dataset.assign(visual_attention=saliency.visual_attention))
