"""References: other content for the visual tokens of a sample (METHODS.md 3.2 and 3.6).

    mean    the mean visual embedding of a pool of samples
    other   another image of the pool, of the same question where there is one, with another answer
    twin    the counterfactual scene
    blur    the sample's own image, blurred

A reference is other content for every visual token of the sample: its embedding and, with
DeepStack, what is added behind the first layers. The grid, and so the position ids, stay.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageFilter
from torch import Tensor

from interp.data.images import open_image
from interp.data.sample import Sample
from interp.extract.question import Query, check_pair
from interp.inputs.completions import Completion, is_right
from interp.inputs.prompts import given_text, teacher_forced
from interp.inputs.tokens import tokens_by_role
from interp.model.vlm import PROMPTS, VLM, embed, embedded
from interp.vocabulary import REFERENCES

BLUR = 0.1  # radius of the blur over the image's shorter side


def counterparts(text: dict[str, list[int]], query: Query) -> list[int | None]:
    """The token of a twin's text in each target's place (METHODS.md 3.2).

    None where there is none, or behind the first thinking token at which the two texts part: from
    there on places are not aligned.

    Args:
        text: the twin's token ids by role, as `twin_text` has them.
        query: the targets of the text that is explained.
    """
    own, found = tokens_by_role(query.tokens), []
    for role, place in query.places:
        # All thinking stands before an answer, and answers may differ.
        before = slice(place) if role == "thinking" else slice(None)
        is_aligned = text.get("thinking", [])[before] == own["thinking"][before]
        has_one = place < len(text.get(role, []))
        found.append(text[role][place] if is_aligned and has_one else None)
    return found


def twin_text(vlm: VLM, twin: Sample) -> dict[str, list[int]]:
    """Token ids of a twin's own text, by role."""
    return tokens_by_role(teacher_forced(vlm.processor, twin, PROMPTS[vlm.prompt]).tokens)


@dataclass(frozen=True)
class Reference:
    """Other content for the visual tokens of one sample."""

    content: Float[Tensor, "visual content"]
    """As `interp.model.vlm.embed` gives it: an embedding each; with DeepStack, the levels that
    enter later layers behind it in the same vector."""
    text: dict[str, list[int]] | None = None
    """Token ids of a twin's own thinking and answer. It is a reference only for targets in whose
    place its own text has another token, with the same thinking before it."""

    def counterparts(self, query: Query) -> list[int | None]:
        """`counterparts` in the twin's own text."""
        return counterparts(self.text or {}, query)

    def is_defined(self, query: Query) -> list[bool]:
        """For which targets this is a reference."""
        targets = query.targets.tolist()
        if self.text is None:
            return [True] * len(targets)
        theirs = self.counterparts(query)
        return [foil not in (None, mine) for foil, mine in zip(theirs, targets, strict=True)]


class Pool:
    """Samples from which references are drawn, their mean visual embedding computed once."""

    def __init__(self, vlm: VLM, samples: Iterable[Sample]):
        self.samples = list(samples)
        self.grids: list[tuple[int, ...]] = []
        total, count = 0.0, 0
        for sample in self.samples:
            embeddings, grid, has_pixels = embedded(vlm, open_image(sample.image))
            total = total + embeddings[has_pixels].sum(dim=0, dtype=torch.float64)
            count, self.grids = count + int(has_pixels.sum()), [*self.grids, grid]
        self.mean: Float[Tensor, " content"] | None = total / count if count else None

    def candidates(self, sample: Sample, answer: str | None) -> list[int]:
        """Samples whose answer is another than the one that is to be explained."""
        return [
            k
            for k, one in enumerate(self.samples)
            if not is_right(one.answer, answer) and one.id != sample.id
        ]

    def other(self, sample: Sample, answer: str | None, grid: tuple[int, ...], seed: int) -> Sample:
        """A sample with another answer, chosen at random.

        Of this grid and question where there is one; else of this grid and kind of question; else
        of this grid; else any.

        Raises:
            ValueError: every sample of the pool has this answer.
        """
        fits = self.candidates(sample, answer)
        if not fits:
            raise ValueError(
                f"{sample.id}: expected a sample with another answer in the pool of "
                f"{len(self.samples)}, got none; pass a larger pool"
            )
        of_grid = [k for k in fits if self.grids[k] == grid]
        of_family = [k for k in of_grid if self.samples[k].family == sample.family]
        of_question = [k for k in of_family if self.samples[k].question == sample.question]
        chosen = of_question or of_family or of_grid or fits
        rng = np.random.default_rng([seed, int(sample.fingerprint, 16)])
        return self.samples[chosen[int(rng.integers(len(chosen)))]]


def references(
    vlm: VLM,
    sample: Sample,
    *,
    pool: Iterable[Sample] | Pool = (),
    kinds: Iterable[str] = ("mean", "other", "twin"),
    completion: Completion | None = None,
    seed: int = 0,
) -> dict[str, Reference]:
    """References of one sample by kind, for `node_effects` and `shapley`.

    A sample without a twin has no reference "twin". An "other" of another grid is resized to this
    sample's image first. Several images have "mean" and "blur" alone.

    Args:
        vlm, sample: what is to be explained.
        pool: samples for "mean" and "other"; a `Pool` computes their mean only once.
        kinds: of `interp.vocabulary.REFERENCES`.
        completion: the text to explain, whose answer "other" must not share; default the sample's.
        seed: of the choice of "other".

    Raises:
        ValueError: an unknown kind; a pool that is empty or has no other answer; nothing that this
            sample can have.
    """
    check_pair(vlm, sample)
    kinds, text = list(kinds), given_text(vlm.processor.tokenizer, completion)
    unknown = sorted(set(kinds) - set(REFERENCES))
    if unknown:
        raise ValueError(f"expected references of {REFERENCES}, got {unknown}")
    images = [open_image(one) for one in sample.images]
    if not images or (len(images) > 1 and {"other", "twin"} & set(kinds)):
        hint = '; several have the references "mean" and "blur"' if images else ""
        raise ValueError(
            f"{sample.id}: expected one image for kinds={kinds}, got {len(images)}{hint}"
        )
    (embeddings, grid, has_pixels), by_kind = embedded(vlm, *images), {}
    if {"mean", "other"} & set(kinds):
        pool = pool if isinstance(pool, Pool) else Pool(vlm, pool)
        if pool.mean is None:
            raise ValueError(
                'expected pool=samples for the references "mean" and "other", got none'
            )
    for kind in kinds:
        if kind == "mean":
            mean = torch.where(has_pixels[:, None], pool.mean.to(embeddings), embeddings)
            by_kind[kind] = Reference(mean)
        elif kind == "other":
            answer = sample.answer if text is None else text.answer
            other_image = open_image(pool.other(sample, answer, grid, seed).image)
            by_kind[kind] = Reference(embed(vlm, other_image.resize(images[0].size))[0])
        elif kind == "blur":
            by_kind[kind] = Reference(embed(vlm, *map(blurred, images))[0])
        elif sample.twin is not None:
            by_kind[kind] = _twin(vlm, sample.twin, images[0].size)
    if not by_kind:
        raise ValueError(
            f'{sample.id}: expected a sample with a twin for kinds={kinds}, got none; "blur" needs '
            'nothing, "mean" and "other" need pool=samples'
        )
    return by_kind


def blurred(image: Image.Image) -> Image.Image:
    """The image under a Gaussian whose radius is `BLUR` of its shorter side."""
    return image.filter(ImageFilter.GaussianBlur(BLUR * min(image.size)))


def _twin(vlm: VLM, twin: Sample, size: tuple[int, int]) -> Reference:
    image = open_image(twin.image).resize(size)
    return Reference(embed(vlm, image)[0], twin_text(vlm, twin))
