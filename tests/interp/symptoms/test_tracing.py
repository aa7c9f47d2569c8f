"""Traced models as users of nnsight and TransformerLens found them wrong."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import interp
from interp.inputs import prompts
from tests.support import ROOT
from tests.support.symptoms import TWO


def test_an_extraction_does_not_depend_on_the_one_before(tiny, samples):
    """Deleting one trace changes what another gives (ndif-team/nnsight #607)."""
    first = interp.extract.effects(tiny, samples[6], **TWO)
    interp.extract.ledger(tiny, samples[1])
    interp.extract.first_order(tiny, samples[2], positions=[50])
    assert interp.extract.effects(tiny, samples[6], **TWO).identical(first)


def test_a_debuggers_trace_function_stays(tiny, sample):
    """Tracing with sys.settrace ends a debugger or a coverage run.

    nnsight traces by frames; pvs-hd-tea/PyTypes PR #162, Restore trace hook previously set
    """
    expected = interp.extract.ledger(tiny, sample, **TWO)

    def trace(_frame, _event, _argument):
        return None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        got = interp.extract.ledger(tiny, sample, **TWO)
        after = sys.gettrace()
    finally:
        sys.settrace(before)
    assert after is trace
    assert got.identical(expected)


@pytest.mark.long
def test_code_without_a_source_file_can_extract(tmp_path):
    """nnsight needs the caller's source, which `python -c`, exec and notebooks lack.

    ndif-team/nnsight (source of traced code), here the caller's
    """
    code = (
        "import interp\n"
        'exec(compile(\'vlm = interp.load_model("tiny")\\n'
        's = interp.load_samples("digits", limit=7)[6]\\n'
        "print(float(interp.extract.ledger(vlm, s, positions=[50]).logit[0]))', 'nowhere', 'exec'))"
        "\nprint(hasattr(5, 'save'), 'save' in dir([]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=200,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    *_, logit, saves = done.stdout.strip().splitlines()
    float(logit)
    assert saves == "False False"  # nnsight puts its method on every object, lists and numbers too


def test_who_imports_nnsight_first_keeps_its_method(tmp_path):
    """`value.save()` in a trace of one's own, after this package was imported too."""
    code = "import nnsight\nimport interp.capture.tracing\nprint(hasattr(5, 'save'))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=200,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.strip() == "True", done.stderr[-2000:]


def test_answers_in_a_batch_are_those_alone_whatever_side_is_padded(tiny, samples):
    """Padding is not masked in generation, and batches give other texts.

    TransformerLensOrg/TransformerLens #1005; huggingface/transformers #36100 (padding side)
    """
    pairs = [(s.image, s.question) for s in samples[:4]]
    pairs[1] = (pairs[1][0], pairs[1][1] + " Please look at all of the picture first.")
    alone = [tiny.answer(*pair).token_ids for pair in pairs]
    tokenizer = tiny.processor.tokenizer
    before = tokenizer.padding_side
    tokenizer.padding_side = "right"
    try:
        assert [one.token_ids for one in tiny.answers(pairs)] == alone
    finally:
        tokenizer.padding_side = before


def test_the_last_residual_gives_the_models_logits(tiny, sample):
    """The accumulated residual stream through norm and unembedding is not the logit.

    TransformerLensOrg/TransformerLens #523, Residual Stack Not Adding Up
    """
    ds = interp.extract.residual(tiny, sample, positions=[50, 55])
    last = torch.from_numpy(ds["residual"].sel(component="resid_post").isel(layer=-1).values)
    text = tiny.model.model.language_model
    with torch.no_grad():
        logits = tiny.model.lm_head(text.norm(last))
    batch = prompts.teacher_forced(tiny.processor, sample, None).batch
    with torch.no_grad():
        own = tiny.model(**batch).logits[0, [50, 55]]
    torch.testing.assert_close(logits, own, atol=1e-4, rtol=1e-4)


def test_raw_logits_are_those_of_hugging_face(tiny, sample):
    """Logits differ from Hugging Face's by a constant that nobody mentions.

    TransformerLensOrg/TransformerLens #693 and #223
    """
    batch = prompts.teacher_forced(tiny.processor, sample, None).batch
    with torch.no_grad():
        logits = tiny.model(**batch).logits[0, [50, 55]].double()
    ids = batch["input_ids"][0, [51, 56]]
    raw = logits.gather(1, ids[:, None])[:, 0]
    by_gauge = {
        gauge: interp.extract.ledger(tiny, sample, gauge=gauge, detail="summary", **TWO)["logit"]
        for gauge in ("raw", "centered")
    }
    np.testing.assert_allclose(by_gauge["raw"], raw, atol=1e-4)
    np.testing.assert_allclose(by_gauge["centered"], raw - logits.mean(1), atol=1e-4)


def test_no_token_is_put_before_the_prompt(tiny, sample):
    """A token for the beginning is prepended twice, or where the model has none.

    TransformerLensOrg/TransformerLens #223 (prepend_bos)
    """
    batch = prompts.teacher_forced(tiny.processor, sample, None).batch
    text = prompts.prompt_text(tiny.processor, sample, None)
    first = tiny.processor.tokenizer(text, add_special_tokens=False).input_ids[0]
    assert int(batch["input_ids"][0, 0]) == first
    ends = (batch["input_ids"][0] == tiny.processor.tokenizer.eos_token_id).nonzero()[:, 0]
    assert int(ends[-1]) == batch["input_ids"].shape[1] - 1
