"""The saliency score of a text (METHODS.md 5): a reward pays it, an analysis measures it.

    scores(vlm, [(sample, completion), …], rule="direct")

One function for both, so that what is trained on and what is reported cannot differ.
"""

import logging
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import xarray as xr

from interp.alignment import alignment
from interp.extract import each
from interp.inputs import Completion
from interp.labels import describe
from interp.maps import holistic
from interp.model import VLM
from interp.sample import Sample

log = logging.getLogger("interp.scores")


@dataclass(frozen=True)
class Rule:
    """Which map is scored, over which targets."""

    kind: str
    """Of `interp.labels.MAP_KINDS`."""
    role: str | None
    """Targets of one role, or of both."""


RULES = {
    "direct": Rule("bottleneck", "answer"),  # Saliency-R1's: Eq. 1 through the thinking
    "effect": Rule("effect", None),
    "edge": Rule("edge", "answer"),  # exact; about a decoder's forward per target
}


def scores(
    vlm: VLM,
    texts: Sequence[tuple[Sample, Completion | None]],
    *,
    rule: str = "direct",
    max_targets: int = 64,
    n_nodes: int = 2,
    max_memory: int = 2 * 2**30,
) -> list[xr.Dataset | str]:
    """How much of each text's map lies on its sample's boxes, or why that cannot be said.

    Args:
        vlm: the model as it is now.
        texts: samples, each with a model's text, or None for the sample's own.
        rule: "direct", the paper's holistic bottleneck map of the answer; "effect", the
            first-order effects on answer and thinking; or "edge", the exact edge effects on the
            answer. ReLU per target, then the sum.
        max_targets: of a text; see `interp.extract.maps`.
        n_nodes: of the quadrature of "effect", of which a score needs fewer than a map.
        max_memory: as for `interp.extract.each`.

    Returns:
        For each text what `interp.alignment.alignment` says, with `visual_attention`, the mean
        over the targets; or the reason for which it is left out, which is logged too.

    Raises:
        ValueError: an unknown rule.
    """
    if rule not in RULES:
        raise ValueError(f"expected a rule of {tuple(RULES)}, got {rule!r}")
    options = {"kinds": (RULES[rule].kind,), "only": RULES[rule].role, "max_targets": max_targets}
    found: list[xr.Dataset | str] = []
    while len(found) < len(texts):
        rest = texts[len(found) :]
        asked = [(sample, {"completion": completion}) for sample, completion in rest]
        try:
            made = each("maps", vlm, asked, n_nodes=n_nodes, max_memory=max_memory, **options)
            for maps, (sample, _) in zip(made, rest, strict=True):
                found.append(_score(maps, sample, RULES[rule]))
        except ValueError as error:
            log.warning("no score: %s", error)
            found.append(str(error))
    return found


def _score(maps: xr.Dataset, sample: Sample, rule: Rule) -> xr.Dataset:
    if sample.boxes is None:
        raise ValueError(f"{sample.id}: expected boxes to score a map against, got none")
    seed = zlib.crc32(sample.id.encode())  # boxes go elsewhere in every image
    found = alignment(holistic(maps, rule.kind, rule.role), sample.boxes, seed=seed)
    return describe(found.assign(visual_attention=maps["visual_attention"].mean()))
