"""Tokens and texts as users of transformers found them wrong, and odd ones of our own."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import interp
from interp.data.sample import Sample
from interp.inputs import prompts
from interp.inputs.completions import completion as completion_of
from tests.support.symptoms import TWO


def test_a_processor_saved_after_use_is_the_same(tiny, samples, tmp_path):
    """Calling a tokenizer changes it, and what is saved afterwards truncates or pads.

    huggingface/transformers #24441, Calling the tokenizer modifies the tokenizer object
    """
    from transformers import AutoProcessor

    texts = ["one", "one two three four five six seven"]
    expected = tiny.processor.tokenizer(texts).input_ids
    tiny.answers([(s.image, s.question) for s in samples[:3]], max_new_tokens=3)
    interp.extract.ledger(tiny, samples[0], detail="summary")
    tiny.processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert again.tokenizer(texts).input_ids == expected
    assert again.image_processor.size == tiny.processor.image_processor.size


def test_a_truncation_of_before_cuts_nothing(tiny, sample):
    """A truncation that somebody asked for once stays with the tokenizer and cuts later texts.

    vllm-project/llm-compressor PR #2917 and huggingface/transformers #24441
    """
    expected = interp.extract.ledger(tiny, sample, detail="summary")
    tokenizer = tiny.processor.tokenizer
    tokenizer("one two three four five", truncation=True, max_length=3, padding="max_length")
    try:
        assert interp.extract.ledger(tiny, sample, detail="summary").identical(expected)
    finally:
        tokenizer._tokenizer.no_truncation()
        tokenizer._tokenizer.no_padding()


@pytest.mark.parametrize("kind", ["lists", "numpy"])
def test_a_batch_without_tensors_is_refused_in_words(tiny, sample, kind):
    """Without return_tensors="pt": 'list' object has no attribute 'to'.

    huggingface/transformers #38341 and #38393
    """
    batch = prompts.teacher_forced(tiny.processor, sample, None).batch
    other = {k: v.tolist() if kind == "lists" else v.numpy() for k, v in batch.items()}
    with pytest.raises(ValueError, match="tensor"):
        interp.extract.ledger(tiny.model, other, positions=[50])


def test_spaces_before_punctuation_stay(tiny):
    """Decoding takes spaces before punctuation away.

    huggingface/transformers #32575 and #25840 (clean_up_tokenization_spaces)
    """
    tokenizer = tiny.processor.tokenizer
    text = "a , b . c ' d 's ? !"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert completion_of(tokenizer, [*ids, tokenizer.eos_token_id]).text == text


@pytest.mark.parametrize("size", [(31, 639), (639, 31), (690, 15420), (1, 1), (199, 1)])
def test_thin_images_are_counted_as_they_are_read(tiny, sample, size, tmp_path):
    """A thin image under few pixels is scaled to a side of 0.

    QwenLM/Qwen3-VL #1145 / PR #2121, huggingface/transformers PR #37264
    """
    Image.new("RGB", size, "red").save(tmp_path / "a.png")
    odd = Sample("a", tmp_path / "a.png", sample.question, "red")
    size_before = tiny.processor.image_processor.size
    tiny.processor.image_processor.size = type(size_before)(
        shortest_edge=4 * 28 * 28, longest_edge=20 * 28 * 28
    )
    try:
        n_tokens = len(prompts.teacher_forced(tiny.processor, odd, None).tokens.ids)
        assert prompts.count_tokens(tiny.processor, odd, None) == n_tokens
    finally:
        tiny.processor.image_processor.size = size_before


@pytest.mark.parametrize("dtype", ["bf16", "half precision", "torch.bfloat16", "int8", "float16"])
def test_a_dtype_that_is_none_is_refused_in_words(dtype):
    """module 'torch' has no attribute 'torch.bfloat16'.

    NielsRogge/Transformers-Tutorials #380; huggingface/transformers PR #13209 (torch_dtype)
    """
    try:
        vlm = interp.load_model("tiny", dtype=dtype)
    except ValueError as error:
        assert "dtype" in str(error) or "float32" in str(error)
        return
    assert str(vlm.model.dtype).endswith(dtype.removeprefix("torch."))


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_gpu_that_is_not_there_is_one_line(tmp_path):
    """`--device cuda` without a GPU is a traceback (AssertionError: Torch not compiled with CUDA).

    agiresearch/AIOS #14 (transformers), pytorch/pytorch #28111; README's command has --device cuda
    """
    with pytest.raises(ValueError, match="cuda"):
        interp.load_model("tiny", device="cuda")


@pytest.mark.parametrize(
    "setting",
    [{"use_cache": False}, {"output_hidden_states": True}],
    ids=str,
)
def test_settings_of_the_config_change_nothing(own, sample, setting):
    """A flag in the config (of training, say) changes what a forward returns.

    huggingface/transformers #7638 and PR #45277 (config.return_dict)
    """
    expected = {
        name: getattr(interp.extract, name)(own, sample, **TWO) for name in ("ledger", "effects")
    }
    said = own.answer(sample.image, sample.question, max_new_tokens=40)
    for config in (own.model.config, own.model.config.text_config):
        for name, value in setting.items():
            setattr(config, name, value)
    for name, ds in expected.items():
        np.testing.assert_allclose(
            getattr(interp.extract, name)(own, sample, **TWO)[
                "magnitude" if name == "ledger" else "total"
            ],
            ds["magnitude" if name == "ledger" else "total"],
            atol=1e-5,
        )
    assert own.answer(sample.image, sample.question, max_new_tokens=40) == said


def test_settings_of_generation_come_back(own, sample):
    """Generation leaves another generation config behind, also after an error.

    huggingface/trl #5783 (generation_config of the model against the caller's)
    """
    config = own.model.generation_config
    config.top_k, config.do_sample, config.temperature = 7, True, 0.3
    before = config.to_dict()
    own.answer(sample.image, sample.question, max_new_tokens=2)
    with pytest.raises(ValueError):
        own.answer(sample.image, "a <|im_end|> b")
    with pytest.raises(ValueError):
        own.answer(sample.image, sample.question, max_new_tokens=-1)
    assert own.model.generation_config is config
    assert config.to_dict() == before


def test_two_samples_are_never_one():
    """Question and text are joined before they are hashed: where one ends does not show."""
    image = Image.new("RGB", (56, 56), "red")
    one = Sample("a", image, "What?\nred", "blue")
    other = Sample("a", image, "What?", "red\nblue")
    assert one.fingerprint != other.fingerprint


def test_a_changed_twin_is_another_sample(samples):
    """Node effects read the twin; a hash that leaves it out resumes with other references."""
    one = samples[6]
    other = replace(one, twin=samples[1].twin)
    assert one.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    "answer",
    [
        " red ",
        "\tred\n",
        "re\u2028d",
        "{{ 1 + 1 }}",
        "red\r\nblue",
        "\u200bred",
        "ﬁ",
        "İ",
        "a" * 3000,
    ],
    ids=lambda a: repr(a)[:12],
)
def test_tokens_of_an_answer_spell_it(tiny, sample, answer):
    """White space, templates, separators, ligatures: the explained tokens are the answer's."""
    odd = replace(sample, answer=answer)
    made = prompts.teacher_forced(tiny.processor, odd, None)
    from interp.inputs.spelling import token_bytes

    ids = [
        int(made.tokens.ids[i]) for i in made.tokens.targets() if made.tokens.role[i] == "answer"
    ]
    spelled = b"".join(token_bytes(tiny.processor.tokenizer, ids)).decode()
    assert spelled.strip() == answer.strip()


@pytest.mark.parametrize(
    "question", ["", " ", "{{ messages }}", "{% raw %}", "<image>", "\x00", "<think>\nx\n</think>"]
)
def test_questions_that_look_like_templates_are_text(tiny, sample, question):
    """A question is text: nothing in it is run, and the image stays one."""
    odd = replace(sample, question=question)
    made = prompts.teacher_forced(tiny.processor, odd, None)
    assert question.strip() in tiny.processor.tokenizer.decode(made.tokens.ids)
    expected = prompts.teacher_forced(tiny.processor, sample, None)
    assert made.tokens.role.count("image") == expected.tokens.role.count("image")
    assert made.tokens.role.count("answer") == expected.tokens.role.count("answer")
    assert made.tokens.role.count("thinking") == expected.tokens.role.count("thinking")
