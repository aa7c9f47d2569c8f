"""A checkpoint as the hub has it, on questions and images as people have them: every command.

Real token ids, template, configs and image processor; a model that has learnt the texts by heart.
"""

import json
import os
from functools import partial

import numpy as np
import pytest
from safetensors.torch import load_file
from trl import GRPOConfig, SFTConfig

import interp
from analyses import direct_vs_indirect, extract, faithfulness, validate_extractor
from interp.plots import fonts
from tests.support import commands, hub_folder, people
from train import certified, grpo, sft

DTYPES = ("bfloat16", "float32")
# The long ones in what every config of the hub says; in the other dtype too in `make soak`.
LONG = DTYPES if "SOAK" in os.environ else DTYPES[:1]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return people.write_data(tmp_path_factory.mktemp("people") / "data")


@pytest.fixture(scope="module")
def samples(data):
    return interp.load_samples(f"jsonl:{data}")


@pytest.fixture(scope="module")
def taught(tmp_path_factory, samples):
    folder = hub_folder.write(tmp_path_factory.mktemp("hub") / "taught")
    hub_folder.teach(folder, samples)
    return folder


@pytest.mark.parametrize("place", hub_folder.PLACES)
def test_the_template_is_found_wherever_it_lies(tmp_path, samples, place):
    folder = hub_folder.write(tmp_path / "model", template_in=place)
    ledger = interp.extract.ledger(interp.load_model(folder), samples[0], detail="summary")
    assert ledger.sizes["target"] > 5


def test_no_template_is_refused(tmp_path):
    folder = hub_folder.write(tmp_path / "model", template_in="tokenizer_config.json")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": None}))
    with pytest.raises(
        ValueError, match=r"expected a chat template in chat_template.jinja, .* none"
    ):
        interp.load_model(folder)


@pytest.mark.long
@pytest.mark.parametrize("dtype", LONG)
def test_the_certificate_passes_on_peoples_data(taught, data, tmp_path, dtype):
    asked = ("--model", taught, "--data", f"jsonl:{data}", "--dtype", dtype)
    done = commands.run(validate_extractor, *asked, "--out", tmp_path / "certificate.json")
    assert done.stdout.startswith("passed")


@pytest.mark.long
@pytest.mark.parametrize("dtype", DTYPES)
def test_parts_sum_to_the_models_own_logits(taught, samples, dtype):
    vlm = interp.load_model(taught, dtype=dtype)
    for sample in samples:
        ledger = interp.extract.ledger(vlm, sample)
        error = (abs(ledger["remainder"]) / ledger["magnitude"]).max()
        assert float(error) < (1e-5 if dtype == "float32" else 5e-2), sample.id


@pytest.mark.long
@pytest.mark.parametrize("dtype", LONG)
def test_both_reports_run_to_their_end(taught, data, tmp_path, dtype):
    asked = ("--model", taught, "--data", f"jsonl:{data}", "--no-witness", "--limit", 4)
    asked += ("--dtype", dtype)
    done = commands.run(direct_vs_indirect, *asked, "--effects", "edge", "--out", tmp_path / "a")
    assert "4 samples ok, 0 skipped, 0 failed" in done.stdout
    run = interp.open_run(tmp_path / "a/run")
    assert run.attrs["dtype"] == dtype
    assert set(np.unique(run["target_role"])) == {"answer", "thinking"}
    page, has_dog = (tmp_path / "a/index.html").read_text(), "🐶" in str(run["question"].values)
    is_boxed = has_dog and ord("🐶") not in fonts._characters()
    assert ("a box for characters that no font" in page) == is_boxed
    methods = ("random", "direct (Eq. 1)", "exact edge")
    done = commands.run(faithfulness, *asked, "--out", tmp_path / "b", "--methods", *methods)
    assert "4 samples ok, 0 skipped, 0 failed" in done.stdout


COMMON = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "use_cpu": True,
    "learning_rate": 1e-2,
    "gradient_checkpointing": False,
}


def moved(out) -> bool:
    """Whether an adapter's second matrices, which start at zero, hold finite numbers now."""
    weights = load_file(out / "final" / "adapter_model.safetensors")
    second = [one for name, one in weights.items() if "lora_B" in name]
    assert all(one.isfinite().all() for one in second)
    return any(one.abs().max() > 0 for one in second)


@pytest.fixture(scope="module")
def taught_3(tmp_path_factory, samples):
    folder = hub_folder.write(tmp_path_factory.mktemp("hub") / "taught", family="qwen3_vl")
    hub_folder.teach(folder, samples)
    return folder


@pytest.mark.long
def test_qwen3_vl_is_exact_on_its_own_words(taught_3, samples):
    """Tags of thinking are tokens of their own, cells 32 pixels, heads wider than the stream."""
    vlm = interp.load_model(taught_3, dtype="float32")
    tags = vlm.processor.tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    for sample in samples:
        text = vlm.answer(sample.image, sample.question)
        assert set(tags) < set(text.token_ids) and text.thinking
        ledger = interp.extract.ledger(vlm, sample, completion=text)
        assert float((abs(ledger["remainder"]) / ledger["magnitude"]).max()) < 1e-5, sample.id
        assert set(ledger["target_role"].values) == {"thinking", "answer"}


@pytest.mark.long
def test_the_whole_report_of_qwen3_vl_is_drawn(taught_3, data, tmp_path):
    """With the levels of its image among the origins, and in --dry-run with the dtype asked for."""
    asked = ("--model", taught_3, "--data", f"jsonl:{data}", "--limit", 2)
    said = commands.run(extract, "direct_vs_indirect", *asked, "--effects", "edge", "--dry-run")
    assert "of weights (torch.bfloat16)" in said.stdout  # its config names it for the text alone
    float32 = ("--effects", "edge", "--dtype", "float32")
    said = commands.run(extract, "direct_vs_indirect", *asked, *float32, "--dry-run")
    assert "of weights (torch.float32)" in said.stdout
    asked += ("--dtype", "float32", "--no-witness", "--out", tmp_path / "a")
    done = commands.run(direct_vs_indirect, *asked)
    assert "2 samples ok, 0 skipped, 0 failed" in done.stdout
    page = (tmp_path / "a/index.html").read_text()
    assert all(f"added there (DeepStack) behind layer {level}" in page for level in (0, 1))


TRAINED = [*(("taught", dtype) for dtype in LONG), ("taught_3", "float32")]


@pytest.mark.long
@pytest.mark.parametrize(("folder", "dtype"), TRAINED)
def test_two_steps_of_each_training(folder, data, tmp_path, monkeypatch, dtype, request):
    taught = request.getfixturevalue(folder)
    # The witness is asked about this model in the certificate's own test, above.
    monkeypatch.setattr(certified, "certify", partial(certified.certify, witness=False))
    common = COMMON | {"bf16": dtype == "bfloat16"}
    files = {"n_samples": 4, "data": f"jsonl:{data}", "split": "train"}
    policy = grpo.Policy(str(taught), dtype=dtype, lora_r=4)
    config = SFTConfig(str(tmp_path / "sft"), max_length=None, **common)
    sft.main(policy, sft.Data(**files), config)
    assert moved(tmp_path / "sft")
    sampled = {"num_generations": 2, "max_completion_length": 48, "temperature": 3.0}
    config = GRPOConfig(str(tmp_path / "grpo"), logging_steps=1, **sampled, **common)
    grpo.main(policy, grpo.Task(**files), config)
    curves = (tmp_path / "grpo/final/curves.csv").read_text().splitlines()
    assert len(curves) == 3 and "saliency" in curves[0]
    interp.load_model(tmp_path / "grpo/final")


@pytest.mark.long
def test_a_text_that_is_too_long_is_left_out(taught, data, tmp_path, caplog):
    """Cut, the longest would be trained without its answer."""
    policy = grpo.Policy(str(taught), lora_r=4)
    config = SFTConfig(str(tmp_path / "sft"), max_length=180, **COMMON)
    files = {"n_samples": 7, "data": f"jsonl:{data}", "certify": False}
    sft.main(policy, sft.Data(**files), config)
    assert "of 7 samples left out: longer than max_length = 180 tokens" in caplog.text
