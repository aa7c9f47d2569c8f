"""The reward of Saliency-R1: accuracy + format + saliency, from the policy's own attention.

    reward = Reward(judge_from_environment(), rule="direct")
    GRPOTrainer(..., reward_funcs=reward, callbacks=[reward])

One object that TRL calls twice: as a callback it takes the policy at the start of training and
certifies the extractor on it; as a reward it reads that policy as it is in this step. Three rewards
apart would not do: TRL counts a missing part as 0 and leaves a sample out only if all are missing.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable

import xarray as xr

from interp.data.sample import Sample
from interp.inputs.completions import Completion, completion, is_well_formed
from interp.scoring import scores
from train.certified import Certified
from train.judge import Judge
from train.rewards.metrics import LOGGED, mean
from train.rewards.parts import Parts, with_saliency

log = logging.getLogger("reward")


class Reward(Certified):
    """accuracy + format + weight · saliency per completion (METHODS.md 5), None where unknown.

    Saliency is 0 where the format is invalid. A sample is None, and so left out of its group, where
    the judge gives no verdict, the text holds an image or video token (the model would read images
    that are not there; TRL's own forward may fail on it before) or the extractor refuses it; each
    reason is counted and logged. All parts go to the trainer's metrics, with chance, shuffled boxes
    and what shows a reward that is hacked.

    Args:
        judge: (question, reference, candidate) → 1, 0 or None.
        rule: of `interp.scoring.RULES`, the map that is scored; None for accuracy + format alone.
        weight: of saliency; 0 measures without paying.
        is_gated: pay saliency only where the answer is right.
        prompt: key of `interp.model.vlm.PROMPTS`; the data set's prompts must have the same.
        options: max_targets, n_nodes and max_memory of `interp.scoring.scores`.
    """

    __name__ = "reward"  # TRL's name of the column

    def __init__(
        self,
        judge: Judge,
        *,
        rule: str | None = "direct",
        weight: float = 1.0,
        is_gated: bool = False,
        prompt: str = "think",
        **options,
    ):
        super().__init__(prompt)
        if not math.isfinite(weight):
            raise ValueError(f"expected a finite weight of saliency, got {weight}")
        self.judge, self.rule, self.weight, self.is_gated = judge, rule, weight, is_gated
        self.options = options
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

    def __call__(
        self,
        completion_ids: list[list[int]],
        sample: list[Sample],
        log_metric: Callable[[str, float], None] = lambda _name, _value: None,
        log_extra: Callable[[str, list], None] = lambda _name, _values: None,
        **_,
    ) -> list[float | None]:
        """One reward per completion; TRL calls this, its other arguments are not needed.

        Raises:
            RuntimeError: training has not begun, so there is no policy to read.
        """
        if self.vlm is None:
            raise RuntimeError("expected the reward among the trainer's callbacks, got no policy")
        written = [completion(self.vlm.processor.tokenizer, ids) for ids in completion_ids]
        parts = [self._judged(*one) for one in zip(sample, written, strict=True)]
        start = time.perf_counter()
        scored = self._scored(sample, written, parts)
        log_metric("seconds/saliency", time.perf_counter() - start)
        parts = [with_saliency(one, score) for one, score in zip(parts, scored, strict=True)]
        self._log(written, parts, scored, log_metric)
        for name in ("accuracy", "format", "saliency", "skipped"):
            log_extra(name, [getattr(one, name) for one in parts])
        return [self._sum(one) for one in parts]

    def _judged(self, sample: Sample, text: Completion) -> Parts:
        processor = self.vlm.processor
        if {*processor.image_token_ids, *processor.video_token_ids} & set(text.token_ids):
            return Parts(skipped="image token in the text")
        verdict = self.judge(sample.question, sample.answer, text.answer) if text.answer else 0.0
        if verdict is None or not math.isfinite(verdict):
            return Parts(skipped="no verdict")
        return Parts(accuracy=verdict, format=float(is_well_formed(processor.tokenizer, text)))

    def _scored(self, samples, written, parts: list[Parts]) -> list[xr.Dataset | str | None]:
        """The scores of the completions of valid format, in one batch."""
        results: list[xr.Dataset | str | None] = [None] * len(parts)
        indices = [k for k, one in enumerate(parts) if one.format and self.rule is not None]
        texts = [(samples[k], written[k]) for k in indices]
        for k, score in zip(
            indices,
            scores(self.vlm, texts, rule=self.rule, **self.options) if texts else [],
            strict=True,
        ):
            results[k] = score
        return results

    def _sum(self, parts: Parts) -> float | None:
        if parts.skipped:
            return None
        is_paid = parts.accuracy > 0 or not self.is_gated
        return parts.accuracy + parts.format + self.weight * parts.saliency * is_paid

    def _log(self, written, parts: list[Parts], scored, log_metric) -> None:
        """Means over the batch; of saliency's own, over the completions that have a map."""
        reasons = Counter(one.skipped for one in parts if one.skipped)
        self.skipped += reasons
        for reason, count in reasons.items():
            log.warning("%d of %d completions without a reward: %s", count, len(parts), reason)
        valid_parts = [one for one in parts if not one.skipped]
        for name in ("accuracy", "format", "saliency"):
            mean(log_metric, name, [getattr(one, name) for one in valid_parts])
        datasets = [one for one in scored if isinstance(one, xr.Dataset)]
        for name, title in LOGGED.items():
            mean(log_metric, title, [float(one[name]) for one in datasets])
        n_thinking = [len((one.thinking or "").split()) for one in written]
        mean(log_metric, "text/tokens", [len(one.token_ids) for one in written])
        mean(log_metric, "text/thinking_words", n_thinking)
        mean(log_metric, "text/empty_thinking", [n == 0 for n in n_thinking])
        mean(log_metric, "text/cut_off", [not one.is_complete for one in written])
        for reason in ("image token in the text", "no verdict", "not explained"):
            mean(log_metric, f"skipped/{reason}", [one.skipped == reason for one in parts])
