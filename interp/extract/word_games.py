"""The game of an image and its partner: which texts are played, and where (METHODS.md 3.7)."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from interp.data.images import open_image
from interp.data.sample import Sample
from interp.extract.two_images import Context
from interp.inputs import prompts
from interp.inputs.completions import Completion
from interp.inputs.outcomes import Outcome, Words, outcome, parting, words_of
from interp.model.vlm import PROMPTS, VLM


@dataclass(frozen=True)
class Game:
    """A sample with a partner, ready to be played: contexts, and the texts of either side."""

    vlm: VLM
    sample: Sample
    partner: Sample
    outcome: Outcome
    contexts: list[Context]
    """One for every different text; the sample's greedy text comes first, where it is one."""
    sides: dict[str, tuple[list[int], list[int]]]
    """By "greedy" and "sampled": the contexts of the sample's texts, and of the partner's."""
    parted: tuple[int, int] | None
    """The tokens w, w' at which the greedy texts part."""


def alike(sample: Sample, partner: Sample) -> Sample:
    """The partner with its image at the sample's size, so that both have one grid.

    Raises:
        ValueError: several images, or none.
    """
    for one in (sample, partner):
        if len(one.images) != 1:
            raise ValueError(f"{one.id}: expected one image, got {len(one.images)}")
    size, image = open_image(sample.image).size, open_image(partner.image)
    return partner if image.size == size else replace(partner, image=image.resize(size), boxes=None)


def prepare(
    vlm: VLM,
    sample: Sample,
    partner: Sample,
    text: Completion | str,
    partner_text: Completion | str,
    *,
    drawn: tuple[list[Completion], list[Completion]] = ([], []),
) -> Game:
    """The game of a sample, its partner (of the same grid) and their texts.

    Raises:
        ValueError: as `words`.
    """
    if sample.question != partner.question or sample.earlier != partner.earlier:
        raise ValueError(f"{sample.id}: expected a partner with the same question")
    if sample.answer is None or partner.answer is None:
        raise ValueError(f"{sample.id}: expected the data's answers of both, got none")
    tokenizer = vlm.processor.tokenizer
    greedy = [words_of(tokenizer, prompts.given_text(tokenizer, t)) for t in (text, partner_text)]
    part = outcome(tokenizer, greedy[0], sample.answer, partner.answer)
    sampled = [_usable(tokenizer, texts, (sample, partner), part) for texts in drawn]
    if outcome(tokenizer, greedy[1], sample.answer, partner.answer) != part:
        raise ValueError(f"{sample.id}: expected answers that part alike behind both texts")
    at = parting(greedy[0].ids, greedy[1].ids)
    return _game(vlm, (sample, partner), part, greedy, sampled, at)


def _usable(tokenizer, texts: Iterable[Completion], pair, part: Outcome) -> list[Words]:
    """Sampled texts with a closed thinking span, behind which the answers part in the same way."""
    usable = []
    for text in texts:
        try:
            found = words_of(tokenizer, text)
            if outcome(tokenizer, found, pair[0].answer, pair[1].answer) == part:
                usable.append(found)
        except ValueError:
            continue
    return usable


def _game(vlm, pair, part: Outcome, greedy: list[Words], sampled, at: int | None) -> Game:
    texts = list(dict.fromkeys(one.ids for one in [*greedy, *sampled[0], *sampled[1]]))
    number = {ids: k for k, ids in enumerate(texts)}
    sides = {"greedy": tuple([number[one.ids]] for one in greedy)}
    if sampled[0] and sampled[1]:
        sides["sampled"] = tuple([number[one.ids] for one in side] for side in sampled)
    own, partner = (
        prompts.prompts(vlm.processor, [one], PROMPTS[vlm.prompt]).to(vlm.device) for one in pair
    )
    n_prompt = own["input_ids"].shape[1]
    contexts = []
    for k, ids in enumerate(texts):
        full = [*ids, *part.shared]
        rows = [n_prompt + len(full) - 1]
        if at is not None and k == 0:
            rows.append(n_prompt + at - 1)
        contexts.append(
            Context(
                own=prompts.extended(own, full),
                partner=prompts.extended(partner, full),
                rows=torch.tensor(rows, device=vlm.device),
            )
        )
    parted = None if at is None else (greedy[0].ids[at], greedy[1].ids[at])
    return Game(vlm, *pair, part, contexts, sides, parted)
