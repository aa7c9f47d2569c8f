"""Roles of tokens on real vocabularies, held against the tokenizers' own offsets."""

import re

import numpy as np
import pytest
from PIL import Image
from transformers import AutoProcessor

from interp.data.sample import Sample
from interp.inputs import completions, prompts
from interp.inputs.spelling import token_bytes
from interp.model.vlm import PROMPTS
from tests.support import hub_folder
from tests.support.texts import TEXTS

SPACE = " \t\n\r\x0b\f"
THINK = re.compile(rf"[{SPACE}]*<think>(.*?)</think>", re.DOTALL)
VOCABULARIES = {
    "Qwen2.5": {},
    "Qwen3": {"family": "qwen3_vl"},
    "Qwen3, tags in pieces": {"family": "qwen3_vl"},  # as models write that never saw the tokens
    "special tags": {"are_tags_added": True, "are_tags_special": True},
}


def loaded(folder, **files):
    hub_folder.write_files(folder, **files)
    processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer.padding_side = "left"
    return processor


@pytest.fixture(scope="module", params=VOCABULARIES)
def vocabulary(request, tmp_path_factory):
    """A processor, and the tokenizer by which a text is written."""
    processor = loaded(tmp_path_factory.mktemp("hub"), **VOCABULARIES[request.param])
    if "pieces" not in request.param:
        return processor, processor.tokenizer
    writing = loaded(tmp_path_factory.mktemp("hub"), family="qwen3_vl", are_tags_added=False)
    assert "<think>" not in writing.tokenizer.get_vocab()
    return processor, writing.tokenizer


@pytest.fixture
def processor(vocabulary):
    return vocabulary[0]


def stripped(text, start, stop):
    """Characters from start to stop without the white space around them."""
    while start < stop and text[start] in SPACE:
        start += 1
    while stop > start and text[stop - 1] in SPACE:
        stop -= 1
    return start, stop


def spans(text):
    """Characters of thinking and answer; absent where there are none."""
    think = THINK.match(text)
    if think:
        both = {
            "thinking": stripped(text, think.start(1), think.end(1)),
            "answer": stripped(text, think.end(), len(text)),
        }
    elif text.lstrip(SPACE).startswith("<think>"):
        both = {}
    else:
        both = {"answer": stripped(text, 0, len(text))}
    return {role: span for role, span in both.items() if span[1] > span[0]}


def roles(offsets, where):
    """The role of each token, by the characters that it stands for."""
    tokens = []
    for start, stop in offsets:
        meets = [r for r, (a, b) in where.items() if start < b and stop > a and stop > start]
        tokens.append(meets[0] if meets else "template")
    return tokens


@pytest.mark.parametrize("is_ended", [True, False])
@pytest.mark.parametrize("kind", TEXTS)
def test_roles_are_those_of_the_characters(vocabulary, kind, is_ended):
    processor, writing = vocabulary
    tokenizer = processor.tokenizer
    text = tokenizer.backend_tokenizer.normalizer.normalize_str(TEXTS[kind])
    encoded = writing(text, add_special_tokens=False, return_offsets_mapping=True)
    if tokenizer.eos_token_id in encoded.input_ids:
        pytest.skip("the text ends at the end token that is written in it")
    completion = completions.completion(
        tokenizer, encoded.input_ids + [tokenizer.eos_token_id] * is_ended
    )
    where = spans(text)
    expected = {role: text[slice(*span)] for role, span in where.items()}
    assert completion.thinking == expected.get("thinking")
    assert completion.answer == expected.get("answer", "")
    if not completion.answer:
        return
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (84, 112, 3), np.uint8))
    sample = Sample("x", image, "What?", "a")
    sequence = prompts.teacher_forced(processor, sample, PROMPTS["think"], completion)
    start = len(sequence.tokens.ids) - len(completion.token_ids)
    found = list(sequence.tokens.role[start:])
    assert found[: len(encoded.input_ids)] == roles(encoded.offset_mapping, where)
    assert found[len(encoded.input_ids) :] == ["template"] * is_ended
    ids = sequence.tokens.ids[start:].tolist()
    for role, content in expected.items():
        pieces = zip(token_bytes(tokenizer, ids), found, strict=True)
        assert content in b"".join(piece for piece, r in pieces if r == role).decode()


def test_a_text_that_writes_the_end_token_ends_there(processor):
    for kind in ("im_end literal", "turn literal"):
        ids = processor.tokenizer(TEXTS[kind], add_special_tokens=False).input_ids
        completion = completions.completion(processor.tokenizer, ids)
        assert completion.is_complete
        assert TEXTS[kind].startswith(completion.text)
        assert "<|im_end|>" not in completion.text


def test_tags_that_are_tokens_make_a_well_formed_text(vocabulary):
    """They may be special tokens; others may not stand in a text."""
    processor, writing = vocabulary
    tokenizer = processor.tokenizer

    def is_well_formed(text):
        ids = writing(text, add_special_tokens=False).input_ids
        return completions.is_well_formed(
            tokenizer, completions.completion(tokenizer, [*ids, tokenizer.eos_token_id])
        )

    assert is_well_formed("<think>\nThe cup.\n</think>\nRed.")
    assert not is_well_formed("<think>\nThe cup.\n</think>\nRed<|vision_start|>.")
    assert not is_well_formed("<think>\nThe cup.\nRed.")
