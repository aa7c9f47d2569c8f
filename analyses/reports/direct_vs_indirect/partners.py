"""Partners: the same question about another image, with another answer (METHODS.md 3.7)."""

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from interp.data.images import upright_size
from interp.data.sample import Sample
from interp.inputs.completions import is_right

KINDS = ("twin", "other-same-question")


class Partners:
    """A pool of samples by question, from which partners are drawn."""

    def __init__(self, pool: Iterable[Sample], seed: int):
        self.seed = seed
        self._by_question: dict[str, list[Sample]] = defaultdict(list)
        self._answers: dict[str, set[str]] = defaultdict(set)
        for sample in pool:
            if sample.answer is not None and len(sample.images) == 1 and not sample.earlier:
                self._by_question[sample.question].append(sample)
                self._answers[sample.family].add(sample.answer)

    def answers(self, family: str) -> list[str]:
        """The answers of a kind of question in the pool."""
        return sorted(self._answers[family])

    def of(self, sample: Sample) -> dict[str, Sample | None]:
        """The partner of each kind; None where there is none.

        "other-same-question" has an image of the same size where there is one; with another size it
        is brought to the sample's.
        """
        return {KINDS[0]: sample.twin, KINDS[1]: self._other(sample)}

    def _other(self, sample: Sample) -> Sample | None:
        fits = [
            one
            for one in self._by_question[sample.question]
            if one.id != sample.id and not is_right(one.answer, sample.answer)
        ]
        if len(sample.images) != 1:
            return None
        size = upright_size(sample.image)
        fits = [one for one in fits if _size(one) == size] or fits
        if not fits:
            return None
        rng = np.random.default_rng([self.seed, int(sample.fingerprint, 16)])
        return fits[int(rng.integers(len(fits)))]


def _size(sample: Sample) -> tuple[int, int] | None:
    """Width and height; None for an image that cannot be read, which is no partner's size."""
    try:
        return upright_size(sample.image)
    except ValueError:
        return None
