"""Which samples can be trained on: others are counted and left out, and no text is cut."""

import logging
from collections import Counter
from collections.abc import Callable

from interp.data.images import open_image
from interp.data.sample import Sample
from interp.inputs.prompts import check_plain, count_tokens

log = logging.getLogger("data")


def usable(
    samples: list[Sample], reason: Callable[[Sample], str | None] = lambda sample: None
) -> list[Sample]:
    """Samples whose image opens and that nothing else speaks against; others are counted.

    Args:
        samples: as a reader gives them.
        reason: why a sample can't be trained on; None if it can.

    Raises:
        ValueError: none is left.
    """
    usable_samples, left_out = [], Counter()
    for sample in samples:
        try:
            why = reason(sample)
            if why is None:
                open_image(sample.image)
        except ValueError as error:
            why = "unreadable image"
            log.warning("%s: %s", sample.id, error)
        if why is None:
            usable_samples.append(sample)
        else:
            left_out[why] += 1
    for why, count in left_out.items():
        log.warning("%d of %d samples left out: %s", count, len(samples), why)
    if not usable_samples:
        raise ValueError(f"expected at least one usable sample, got {dict(left_out) or 'none'}")
    return usable_samples


def against_question(sample: Sample, processor, *, with_boxes: bool) -> str | None:
    """Why a sample's question can't be asked in training; None if it can."""
    if sample.answer is None:
        return "no answer"
    if with_boxes and sample.boxes is None:
        return "no boxes"
    return _steering(processor.tokenizer, sample.question)


def against_text(
    sample: Sample, processor, system: str | None, max_length: int | None
) -> str | None:
    """Why a sample's own text can't be trained on; None if it can.

    Cut at `max_length` it would be trained without its answer, on a photo perhaps without a word.
    """
    if sample.answer is None:
        return "no answer"
    why = _steering(processor.tokenizer, sample.question, sample.answer, sample.thinking or "")
    if why is None and max_length and count_tokens(processor, sample, system) > max_length:
        why = f"longer than max_length = {max_length} tokens"
    return why


def _steering(tokenizer, *texts: str) -> str | None:
    try:
        for text in texts:
            check_plain(tokenizer, text, "a text")
    except ValueError:
        return "special tokens in question or text"
    return None


class Whole:
    """A collator of TRL's that never cuts a text: one that is too long is an error."""

    def __init__(self, collator):
        self.collator, self.max_length = collator, collator.max_length
        collator.max_length = None

    def __call__(self, examples: list[dict]) -> dict:
        """The batch; raises ValueError for a text of more than `max_length` tokens."""
        batch = self.collator(examples)
        longest = int(batch["attention_mask"].sum(dim=1).max())
        if self.max_length is not None and longest > self.max_length:
            raise ValueError(
                f"expected texts of at most max_length = {self.max_length} tokens, got one of "
                f"{longest}; raise max_length, or shrink the image"
            )
        return batch
