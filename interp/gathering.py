"""Everything that a page shows of one answer: the calls of `interp.extract`, by name."""

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import xarray as xr

from interp import extract
from interp.attribution import METHODS
from interp.data.images import Given, open_image
from interp.data.sample import Sample, is_file_name
from interp.extract.arguments import Text
from interp.extract.sharing import sharing
from interp.inputs.completions import Completion
from interp.inputs.prompts import given_text
from interp.model.vlm import VLM
from interp.vocabulary import MAP_KINDS, describe

log = logging.getLogger("interp.page")
QUICK_KINDS = ("direct", "bottleneck", "two_hop", "effect")
THROUGH_THINKING = ("bottleneck", "two_hop")
GROUPED = ("system", "earlier", "question", "template")
"""Roles whose tokens are one node of the graph; of thinking and answer each token is its own."""
VISUAL = ("image", "evidence", "background")


@dataclass(frozen=True)
class Gathered:
    """Datasets of one answer, and what could not be had."""

    datasets: dict[str, xr.Dataset]
    """By name: ledger, effects, heads, alternatives, maps, edges, node_effects, pixels, methods,
    words; those that were asked for and can be had."""
    left_out: tuple[str, ...] = ()
    """Sentences on what was asked for and is not there."""


def everything(
    vlm: VLM,
    sample: Sample,
    *,
    completion: Text | None = None,
    kinds: Iterable[str] = QUICK_KINDS,
    partner: Sample | Given | None = None,
    n_heads: int = 8,
    methods: Iterable[str] = (),
    pixels: bool = False,
    graph: bool = True,
) -> Gathered:
    """Everything that a page shows of one answer.

    Where a map, an arrow or an intervention needs another image, it is the partner's, or without a
    partner this one blurred; the attribute `reference` of a dataset says which.

    Args:
        vlm, sample, completion: as for `interp.extract.ledger`.
        kinds: of map; those through the thinking are left out of a text without a whole thinking
            span, all of a question about text alone. "edge" and "slot" cost about a forward per
            target.
        partner: the same question about another image, for the four paths through the words: a
            sample, or an image, which the model itself answers. They are about the model's own
            texts, and left out of a page about another text, or where both have one answer.
        n_heads: heads of each target whose map and attention are kept.
        methods: names of `interp.attribution.METHODS`, whose maps of every target are made besides.
        pixels: also paint every patch: two forwards each.
        graph: also the graph of paths: one variant of each target's row per token before it.

    Raises:
        ValueError: as the calls; unknown kinds or methods; methods or pixels of several images or
            of none.
    """
    kinds, methods = tuple([kinds] if isinstance(kinds, str) else kinds), list(methods)
    _check(sample, kinds, methods, pixels)
    text = given_text(vlm.processor.tokenizer, completion)
    options, left_out = {"completion": completion}, []
    with sharing():
        found = {
            "ledger": extract.ledger(vlm, sample, detail="tokens", **options),
            "effects": extract.effects(vlm, sample, **options),
            "heads": extract.heads(vlm, sample, n=n_heads, **options),
            "alternatives": extract.alternatives(vlm, sample, **options),
        }
        partner = _partner(vlm, sample, partner)
        other = _Other(vlm, sample, partner)
        if graph:
            sources = graph_sources(found["ledger"])
            found["edges"] = extract.effects(vlm, sample, sources=sources, **options)
        if sample.images:
            wanted = _possible(kinds, found["ledger"], is_whole=text is None or text.is_complete)
            reference = other.content() if "slot" in wanted else None
            maps = extract.maps(vlm, sample, kinds=wanted, reference=reference, **options)
            found["maps"] = other.told(maps) if "slot" in wanted else maps
        if graph and sample.images:
            visual = {name: sources[name] for name in sources if name.startswith(VISUAL)}
            contents = {"other": other.content()}
            nodes = extract.node_effects(
                vlm, sample, sources=visual, references=contents, **options
            )
            found["node_effects"] = other.told(nodes)
        if pixels:
            painted = extract.pixel_effects(vlm, sample, reference=other.picture(), **options)
            found["pixels"] = other.told(painted)
    if methods:
        found["methods"] = _by_methods(vlm, sample, methods, found["ledger"], completion)
    if partner is not None:
        try:
            found["words"] = _words(vlm, sample, partner, text)
        except ValueError as error:
            left_out.append(f"The four paths through the words are left out: {error}.")
            log.warning(left_out[-1])
    return Gathered(found, tuple(left_out))


def _check(sample: Sample, kinds: tuple[str, ...], methods: list[str], pixels: bool) -> None:
    """Raises ValueError for what would otherwise be found out after everything else."""
    if not kinds or set(kinds) - set(MAP_KINDS):
        raise ValueError(f"expected kinds of {MAP_KINDS}, got {kinds}")
    unknown = sorted(set(methods) - set(METHODS))
    if unknown:
        raise ValueError(f"expected methods of {list(METHODS)}, got {unknown}")
    if (methods or pixels) and len(sample.images) != 1:
        asked = "methods" if methods else "pixels"
        raise ValueError(f"expected one image for {asked}=, got {len(sample.images)}")


def _words(vlm: VLM, sample: Sample, partner: Sample, text: Completion | None) -> xr.Dataset:
    """The four-path game of the text that is explained.

    Raises:
        ValueError: a text that is not the model's own, or as `interp.extract.words`.
    """
    if text is None or text.source != "own":
        raise ValueError("they are about the model's own text, and this one was given")
    own = sample if sample.answer is not None else replace(sample, answer=text.answer)
    return extract.words(vlm, own, partner, text=text)


@dataclass(frozen=True)
class _Other:
    """The other image: the partner's at this one's size, or this one blurred."""

    vlm: VLM
    sample: Sample
    partner: Sample | None

    @property
    def is_partner(self) -> bool:
        return self.partner is not None and len(self.sample.images) == 1

    def content(self):
        """Content of the visual tokens."""
        if not self.is_partner:
            return extract.references(self.vlm, self.sample, kinds=("blur",))["blur"].content
        paired = replace(self.sample, twin=self.partner)
        return extract.references(self.vlm, paired, kinds=("twin",))["twin"].content

    def picture(self):
        """A picture, or "blur", as `pixel_effects` takes it."""
        return open_image(self.partner.image) if self.is_partner else "blur"

    def told(self, dataset: xr.Dataset) -> xr.Dataset:
        """The dataset with the name of the other image."""
        name = f"the image of {self.partner.id}" if self.is_partner else "this image, blurred"
        return dataset.assign_attrs(reference=name)


def graph_sources(ledger: xr.Dataset) -> dict[str, list[int]]:
    """Source sets of the graph of paths: groups of the prompt, and each token of the text alone.

    The images are one set, or two where boxes are known: evidence and background. Those of several
    images are told apart.
    """
    role, is_evidence = ledger["source_role"].values, ledger["is_evidence"].values
    is_visual = role == "image"
    sets = {name: np.flatnonzero(role == name) for name in GROUPED}
    numbers = np.unique(ledger["image"].values[is_visual]).tolist()
    if (is_visual & is_evidence).any():
        sets["evidence"] = np.flatnonzero(is_visual & is_evidence)
        sets["background"] = np.flatnonzero(is_visual & ~is_evidence)
    elif len(numbers) > 1:
        sets |= {f"image {k}": np.flatnonzero(ledger["image"].values == k) for k in numbers}
    else:
        sets["image"] = np.flatnonzero(is_visual)
    last = int(ledger["target_position"].max())
    before = {name: rows[rows < last].tolist() for name, rows in sets.items()}
    text = np.flatnonzero(np.isin(role, ("thinking", "answer", "text")))
    alone = {str(row): [row] for row in text.tolist() if row < last}
    return {name: rows for name, rows in before.items() if rows} | alone


def _by_methods(vlm, sample, methods: list[str], ledger: xr.Dataset, completion) -> xr.Dataset:
    """Maps by other methods, of every target: `method_map` (explainer, target, row, column)."""
    targets = range(ledger.sizes["target"])
    maps = [
        [METHODS[name](vlm, sample, k, completion=completion).values for k in targets]
        for name in methods
    ]
    of_targets = [name for name in ledger.coords if str(name).startswith("target")]
    dataset = xr.Dataset(
        {"method_map": (("explainer", "target", "row", "column"), np.array(maps))},
        coords={name: ledger.coords[name] for name in of_targets} | {"explainer": methods},
        attrs=ledger.attrs,
    )
    return describe(dataset)


def _possible(kinds: tuple[str, ...], ledger: xr.Dataset, is_whole: bool) -> tuple[str, ...]:
    """Those kinds of map that the text can have; Eq. 1 where it can have none of them."""
    has_thinking = is_whole and bool((ledger["source_role"] == "thinking").any())
    found = tuple(kind for kind in kinds if has_thinking or kind not in THROUGH_THINKING)
    return found or ("direct",)


def _partner(vlm: VLM, sample: Sample, partner) -> Sample | None:
    """The partner as a sample with an answer, its own or the model's."""
    if partner is None:
        return None
    if not isinstance(partner, Sample):
        is_path = isinstance(partner, str | os.PathLike)
        name = Path(partner).stem if is_path and is_file_name(Path(partner).stem) else "partner"
        partner = Sample(id=name, image=partner, question=sample.question)
    if partner.answer is not None:
        return partner
    return replace(partner, answer=vlm.answers([partner])[0].answer)
