"""Special tokens in what people write: refused, wherever they stand; tags of thinking are text."""

from dataclasses import replace

import pytest

import interp


@pytest.fixture(scope="module")
def sample():
    return interp.load_samples("digits", limit=7)[6]


@pytest.mark.parametrize("field", ["question", "answer", "thinking"])
@pytest.mark.parametrize("token", ["<|im_end|>", "<|image_pad|>", "<|im_start|>", "<|endoftext|>"])
def test_special_tokens_are_refused(tiny, sample, field, token):
    if token not in tiny.processor.tokenizer.get_vocab():
        pytest.skip("the embedded tokenizer has no such token")
    wrong = replace(sample, **{field: f"green{token}blue"})
    with pytest.raises(ValueError, match="without special tokens, got '<") as caught:
        interp.extract.ledger(tiny, wrong, detail="summary")
    assert token in str(caught.value)


def test_added_tokens_are_refused_and_tags_are_not(sample):
    vlm = interp.load_model("tiny")
    vlm.processor.tokenizer.add_tokens(["<|tool|>"])
    with pytest.raises(ValueError, match=r"got '<\|tool\|>' in it"):
        interp.extract.ledger(vlm, replace(sample, answer="a <|tool|>"), detail="summary")
    interp.extract.ledger(vlm, sample, detail="summary")
