"""One reward out of weighted parts, in the form that TRL calls.

    reward = saliency_r1(judge_from_environment(), rule="direct")
    GRPOTrainer(..., reward_funcs=reward, callbacks=[reward])

One object that TRL calls twice: as a callback it takes the policy at the start of training and
certifies the extractor on it; as a reward it reads that policy as it is in this step. Several
rewards apart would not do: TRL counts a missing one as 0 and leaves a sample out only if all are
missing.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from interp.data.sample import Sample
from interp.inputs.completions import Completion, completion, is_well_formed
from interp.model.vlm import VLM
from train.certified import Certified
from train.judge import Judge
from train.rewards.accuracy import Accuracy, Format
from train.rewards.batch import LEAST_SPREAD, Batch, Log, Part, Written, spread_of, within_groups
from train.rewards.metrics import mean, of_groups, of_texts
from train.rewards.saliency import Alignment
from train.rewards.sources import SOURCES, Sources

log = logging.getLogger("reward")


@dataclass(frozen=True)
class Term:
    """A part and what it weighs; one of weight 0 is measured and logged, and decides nothing."""

    part: Part
    weight: float = 1.0

    def __post_init__(self):
        if not math.isfinite(self.weight):
            raise ValueError(
                f"expected a finite weight of {self.part.name}, got {self.weight}; 0 measures alone"
            )


class Reward(Certified):
    """Σ weight · part per completion (METHODS.md 5), None where a paid part is not known.

    A completion is None, and so left out of its group, where the judge gives no verdict, the text
    holds an image or video token (the model would read images that are not there; TRL's own forward
    may fail on it before) or a part is None; each reason is counted and logged.

    Args:
        judge: (question, reference, candidate) → 1, 0 or None.
        terms: what is paid or measured.
        scale_parts: divide each part by its standard deviation inside its group, where it varies.
        prompt: key of `interp.model.vlm.PROMPTS`; the data set's prompts must have the same.
        sources: of `train.rewards.sources.SOURCES`, where maps may come from.

    Raises:
        ValueError: two parts of one name, or none.
    """

    __name__ = "reward"  # TRL's name of the column

    def __init__(
        self,
        judge: Judge,
        terms: Sequence[Term],
        *,
        scale_parts: bool = False,
        prompt: str = "think",
        sources: Iterable[str] = SOURCES,
    ):
        super().__init__(prompt)
        names = [term.part.name for term in terms]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"expected parts with names of their own, got {names}")
        self.judge, self.terms, self.scale_parts = judge, list(terms), scale_parts
        self.source_names = tuple(sources)
        self.sources: Sources | None = None
        self.group_size = 0
        """Completions of a prompt, as the trainer samples them; 0 where nobody has said."""
        self.accuracy: list[float | None] = []
        """The judge's verdicts on the last completions; None where there is none."""
        self.skipped: Counter[str] = Counter()
        """Completions without a reward so far, by reason."""

    def on_train_begin(self, args, state, control, *, processing_class, **kwargs):
        """Takes and certifies the policy.

        Raises:
            ValueError: a processor that pads on the right, or sharded weights.
            NotCertified: the extractor fails on this policy.
        """
        side = processing_class.tokenizer.padding_side
        if side != "left":
            raise ValueError(
                f"expected a processor that pads on the left, got {side!r}; set "
                "processor.tokenizer.padding_side = 'left', or prompts and texts come apart"
            )
        super().on_train_begin(args, state, control, processing_class=processing_class, **kwargs)
        self.group_size = getattr(args, "num_generations", 0)
        # Hugging Face's generation leaves a cache, vLLM does not; nothing is kept for nobody.
        unused = "generation" if getattr(args, "use_vllm", False) else "policy"
        usual = tuple(self.source_names) == SOURCES
        self.listen(self.vlm, [name for name in self.source_names if name != unused or not usual])

    def on_train_end(self, *_args, **_kwargs):
        """Takes the hooks off the policy."""
        if self.sources is not None:
            self.sources.close()

    def listen(self, vlm: VLM, sources: Iterable[str] | None = None) -> None:
        """Takes a policy: from its next generation on, its maps need no forward of their own.

        Args:
            vlm: the policy.
            sources: where maps may come from; by default those of the reward.
        """
        names = self.source_names if sources is None else tuple(sources)
        if self.sources is not None:
            self.sources.close()
        # A part of somebody's own may read maps without saying so.
        has_maps = any(getattr(term.part, "reads_maps", True) for term in self.terms)
        self.vlm, self.sources = vlm, Sources(vlm, names if has_maps else ())

    def __call__(
        self,
        completion_ids: list[list[int]],
        sample: list[Sample],
        log_metric: Log = lambda _name, _value: None,
        log_extra=lambda _name, _values: None,
        **_,
    ) -> list[float | None]:
        """One reward per completion; TRL calls this, its other arguments are not needed.

        Raises:
            RuntimeError: training has not begun, so there is no policy to read.
        """
        if self.vlm is None:
            raise RuntimeError("expected the reward among the trainer's callbacks, got no policy")
        texts = [completion(self.vlm.processor.tokenizer, ids) for ids in completion_ids]
        groups = self._groups(sample)
        judged = [self._judged(*one) for one in zip(count(), groups, sample, texts, strict=False)]
        self.accuracy = [one.accuracy if isinstance(one, Written) else None for one in judged]
        written = [one for one in judged if isinstance(one, Written)]
        batch = Batch(
            written,
            make=lambda some, **options: self._maps(some, log_metric, **options),
            read=self._readings,
            processor=self.vlm.processor,
        )
        start = time.perf_counter()
        try:
            values = {term.part.name: term.part(batch, log_metric) for term in self.terms}
        finally:
            self.sources.drop()
        log_metric("seconds/saliency", time.perf_counter() - start)
        totals = self._totals(values, batch)
        self._log(texts, judged, values, batch, totals, log_metric)
        for name, column in values.items():
            log_extra(name, _spread(column, written, len(texts)))
        paid = [one if isinstance(one, float) else None for one in totals]
        return _spread(paid, written, len(texts))

    def _groups(self, samples: list[Sample]) -> list[int]:
        """Which completions are of one prompt: those that stand side by side."""
        if self.group_size and len(samples) % self.group_size == 0:
            return [k // self.group_size for k in range(len(samples))]
        keys = [(one.id, one.question, one.answer) for one in samples]
        starts = [k == 0 or keys[k] != keys[k - 1] for k in range(len(keys))]
        return np.cumsum(starts).tolist()

    def _judged(self, number: int, group: int, sample: Sample, text: Completion) -> Written | str:
        """A completion with its verdict, or why it has no reward."""
        processor = self.vlm.processor
        if {*processor.image_token_ids, *processor.video_token_ids} & set(text.token_ids):
            return "image token in the text"
        verdict = self.judge(sample.question, sample.answer, text.answer) if text.answer else 0.0
        if verdict is None or not math.isfinite(verdict):
            return "no verdict"
        is_valid = is_well_formed(processor.tokenizer, text)
        return Written(number, sample, text, is_valid, float(verdict), group)

    def _maps(self, written: list[Written], log_metric: Log, **options) -> list:
        """The policy's maps of some completions, in one batch."""
        if not written:
            return []
        texts = [(one.sample, one.text) for one in written]
        numbers = [one.number for one in written]
        return self.sources.saliencies(texts, numbers, log_metric, **options)

    def _readings(self, written: Sequence[Written], change) -> list:
        """How the policy reads some completions."""
        texts = [(one.sample, one.text) for one in written]
        return self.sources.readings(texts, [one.number for one in written], change)

    def _totals(self, values: dict[str, list], batch: Batch) -> list[float | str]:
        """Weighted sums, or for which part there is none."""
        totals: list[float | str] = [0.0] * len(batch.written)
        for term in self.terms:
            if term.weight == 0:
                continue
            column = values[term.part.name]
            paid = self._scaled(column, batch) if self.scale_parts else column
            for k, value in enumerate(paid):
                if isinstance(totals[k], str):
                    continue
                known = value is not None
                totals[k] = totals[k] + term.weight * value if known else f"no {term.part.name}"
        return totals

    @staticmethod
    def _scaled(values: list[float | None], batch: Batch) -> list[float | None]:
        centred = within_groups(values, batch)
        for group in batch.groups():
            width = spread_of(centred[group])
            centred[group] /= width if width > LEAST_SPREAD else 1.0
        return [None if np.isnan(one) else float(one) for one in centred]

    def _log(self, texts, judged, values, batch: Batch, totals, log_metric: Log) -> None:
        """Means over the completions that have a reward, and why others have none."""
        skipped = [one for one in judged if isinstance(one, str)]
        skipped += [one for one in totals if isinstance(one, str)]
        reasons = Counter(skipped)
        self.skipped += reasons
        for reason, n in reasons.items():
            log.warning("%d of %d completions without a reward: %s", n, len(texts), reason)
        has_reward = [isinstance(one, float) for one in totals]
        for name, column in values.items():
            known = [v for v, has in zip(column, has_reward, strict=True) if has and v is not None]
            mean(log_metric, name, known)
        of_groups(log_metric, values, batch)
        of_texts(log_metric, texts)
        for reason in {"image token in the text", "no verdict", *reasons}:
            log_metric(f"skipped/{reason}", reasons[reason] / len(texts))


def _spread(column: list, written: list[Written], n: int) -> list:
    """A value for each completion that was sampled; None where it could not be rewarded."""
    spread: list = [None] * n
    for one, value in zip(written, column, strict=True):
        spread[one.number] = value
    return spread


def saliency_r1(
    judge: Judge,
    *,
    rule: str | None = "direct",
    weight: float = 1.0,
    is_gated: bool = False,
    prompt: str = "think",
    **options,
) -> Reward:
    """The reward of Saliency-R1: accuracy + format + weight · saliency.

    Args:
        judge, prompt: as for `Reward`.
        rule: of `interp.scoring.RULES`, the map that is scored; None for accuracy + format alone.
        weight: of saliency; 0 measures without paying.
        is_gated: pay saliency only where the answer is right.
        options: max_targets, n_nodes and max_memory of `interp.scoring.saliencies`.

    Raises:
        ValueError: a weight that is not finite.
    """
    terms = [Term(Accuracy()), Term(Format())]
    if rule is not None:
        terms.append(Term(Alignment(rule, is_gated=is_gated, **options), weight))
    return Reward(judge, terms, prompt=prompt)
