"""Rows and rewards of training as users of TRL found them wrong."""

import pytest

from interp.inputs import prompts


@pytest.mark.parametrize("prompt", ["plain", "think"])
def test_what_is_trained_is_what_is_explained(tiny, samples, prompt):
    """The collator's tokens are others than those of generation and measuring.

    huggingface/trl #4289 (image tokens do not match) and #4189 (collator of prompt and completion)
    """
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    from interp.model.vlm import PROMPTS
    from train.rows import texts

    rows = texts(3, samples.__getitem__, PROMPTS[prompt])
    collator = DataCollatorForVisionLanguageModeling(tiny.processor, completion_only_loss=True)
    batch = collator([rows[k] for k in range(3)])
    for k in range(3):
        made = prompts.teacher_forced(tiny.processor, samples[k], PROMPTS[prompt])
        ids = batch["input_ids"][k][batch["attention_mask"][k].bool()].tolist()
        expected = made.batch["input_ids"][0].tolist()
        assert ids[: len(expected)] == expected
        learned = batch["labels"][k][batch["labels"][k] >= 0].tolist()
        text = prompts.text_ids(tiny.processor, samples[k])
        assert learned[: len(text)] == text


def test_no_rows_are_no_crash(tiny):
    """An empty data set ends in IndexError (huggingface/trl, empty dataset after filtering)."""
    from train.usable import usable

    try:
        kept = usable([])
    except ValueError as error:
        assert "expected" in str(error)
    else:
        assert kept == []
