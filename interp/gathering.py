"""Everything that a page shows of one answer: the calls of `interp.extract`, by name."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import xarray as xr

from interp import extract
from interp.attribution import METHODS
from interp.data.images import Given
from interp.data.sample import Sample
from interp.extract.arguments import Text
from interp.extract.sharing import sharing
from interp.inputs.prompts import given_text
from interp.model.vlm import VLM
from interp.vocabulary import describe

QUICK_KINDS = ("direct", "bottleneck", "two_hop", "effect")
THROUGH_THINKING = ("bottleneck", "two_hop")
GROUPED = ("system", "earlier", "question", "template")
"""Roles whose tokens are one node of the graph; of thinking and answer each token is its own."""
VISUAL = ("image", "evidence", "background")


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
) -> dict[str, xr.Dataset]:
    """The datasets of a page, by name: ledger, effects, maps, heads, alternatives and more.

    Args:
        vlm, sample, completion: as for `interp.extract.ledger`.
        kinds: of map; those through the thinking are left out of a text without a whole thinking
            span, all of a question about text alone. "edge" and "slot" cost about a forward per
            target; "slot" is against the partner's image, or a blurred one.
        partner: the same question about another image, for the four paths through the words: a
            sample, or an image, which the model itself answers.
        n_heads: heads of each target whose map and attention are kept.
        methods: names of `interp.attribution.METHODS`, whose maps of every target are made besides,
            on a single image.
        pixels: also paint every patch: two forwards each, on a single image.
        graph: also the graph of paths: one variant of each target's row per token before it.

    Raises:
        ValueError: as the calls.
    """
    text = given_text(vlm.processor.tokenizer, completion)
    options = {"completion": completion}
    with sharing():
        found = {
            "ledger": extract.ledger(vlm, sample, detail="tokens", **options),
            "effects": extract.effects(vlm, sample, **options),
            "heads": extract.heads(vlm, sample, n=n_heads, **options),
            "alternatives": extract.alternatives(vlm, sample, **options),
        }
        partner = _partner(vlm, sample, partner)
        if sample.images:
            wanted = _possible(kinds, found["ledger"], is_whole=text is None or text.is_complete)
            reference = _reference(vlm, sample, partner) if graph or "slot" in wanted else None
            found["maps"] = extract.maps(vlm, sample, kinds=wanted, reference=reference, **options)
        if graph:
            sources = graph_sources(found["ledger"])
            found["edges"] = extract.effects(vlm, sample, sources=sources, **options)
        if graph and sample.images:
            visual = {name: sources[name] for name in sources if name.startswith(VISUAL)}
            found["node_effects"] = extract.node_effects(
                vlm, sample, sources=visual, references={"other": reference}, **options
            )
        if pixels and len(sample.images) == 1:
            found["pixels"] = extract.pixel_effects(vlm, sample, **options)
    if methods and len(sample.images) == 1:
        found["methods"] = _by_methods(vlm, sample, list(methods), found["ledger"], completion)
    if partner is not None:
        own = text if text is not None and text.source == "own" else None
        asked = sample if sample.answer is not None else _answered(vlm, sample)
        found["words"] = extract.words(vlm, asked, partner, text=own)
    return found


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
    unknown = sorted(set(methods) - set(METHODS))
    if unknown:
        raise ValueError(f"expected methods of {list(METHODS)}, got {unknown}")
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


def _possible(kinds: Iterable[str], ledger: xr.Dataset, is_whole: bool) -> tuple[str, ...]:
    """Those kinds of map that the text can have."""
    kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    has_thinking = is_whole and bool((ledger["source_role"] == "thinking").any())
    return tuple(kind for kind in kinds if has_thinking or kind not in THROUGH_THINKING)


def _partner(vlm: VLM, sample: Sample, partner) -> Sample | None:
    """The partner as a sample with an answer, its own or the model's."""
    if partner is None or isinstance(partner, Sample):
        return partner if partner is None or partner.answer is not None else _answered(vlm, partner)
    other = Sample(id=f"{sample.id[:80]}-partner", image=partner, question=sample.question)
    return _answered(vlm, other)


def _answered(vlm: VLM, sample: Sample) -> Sample:
    """A sample with the model's own answer, where nobody knows the right one."""
    return replace(sample, answer=vlm.answers([sample])[0].answer)


def _reference(vlm: VLM, sample: Sample, partner: Sample | None):
    """Content of the visual tokens for the partner's image, or for this one blurred."""
    if partner is None:
        return extract.references(vlm, sample, kinds=("blur",))["blur"].content
    paired = replace(sample, twin=partner)
    return extract.references(vlm, paired, kinds=("twin",))["twin"].content
