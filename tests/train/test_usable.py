"""Samples that can't be trained on are counted and left out; no text is trained without its end."""

from dataclasses import replace

import pytest
import torch

import interp
from interp.inputs import prompts
from interp.model.vlm import PROMPTS
from train import usable


@pytest.fixture(scope="module")
def good():
    return interp.load_samples("digits", limit=3)


def test_samples_that_cannot_be_asked_are_counted(tiny, good, tmp_path, caplog):
    (tmp_path / "broken.png").write_bytes(b"not an image")
    broken = replace(good[1], image=tmp_path / "broken.png")
    steering = replace(good[2], question="What is <|image_pad|>?")
    bad = [replace(good[0], boxes=None), broken, steering]

    def without_boxes(sample):
        return usable.against_question(sample, tiny.processor, with_boxes=False)

    def with_boxes(sample):
        return usable.against_question(sample, tiny.processor, with_boxes=True)

    assert usable.usable(good + bad, with_boxes) == good
    for reason in ("no boxes", "unreadable image", "special tokens in question or text"):
        assert f"1 of 6 samples left out: {reason}" in caplog.text
    assert usable.usable(good + bad, without_boxes) == [*good, bad[0]]
    with pytest.raises(ValueError, match="at least one usable sample"):
        usable.usable(bad, with_boxes)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_tokens_are_counted_without_pixels(tiny, prompt):
    """As many as the processor makes of prompt, image and text, on canvases of all shapes."""
    for sample in interp.load_samples("digits", limit=12):
        sequence = prompts.teacher_forced(tiny.processor, sample, PROMPTS[prompt])
        counted = prompts.count_tokens(tiny.processor, sample, PROMPTS[prompt])
        assert counted == len(sequence.tokens.ids)


def test_texts_longer_than_max_length_are_left_out(tiny, good, caplog):
    lengths = [prompts.count_tokens(tiny.processor, sample, None) for sample in good]
    longest = max(lengths)

    def fits(max_length):
        return lambda sample: usable.against_text(sample, tiny.processor, None, max_length)

    assert usable.usable(good, fits(None)) == usable.usable(good, fits(longest)) == good
    kept = usable.usable(good, fits(longest - 1))
    assert kept == [s for s, length in zip(good, lengths, strict=True) if length < longest]
    assert f"left out: longer than max_length = {longest - 1} tokens" in caplog.text
    wrong = replace(good[0], answer="a <|im_end|>")
    assert fits(None)(wrong) == "special tokens in question or text"


def test_a_collator_cuts_nothing():
    """It would cut the answer off, which stands last, and train the rest."""

    class Collator:
        max_length = 5

        def __call__(self, examples):
            mask = torch.ones(len(examples), max(map(len, examples)), dtype=torch.long)
            return {"attention_mask": mask[:, : self.max_length]}

    whole = usable.Whole(Collator())
    assert whole([[1] * 5, [1] * 3])["attention_mask"].shape == (2, 5)
    with pytest.raises(ValueError, match="at most max_length = 5 tokens, got one of 6; raise"):
        whole([[1] * 6])
