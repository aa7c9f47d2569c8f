"""Loading: embedded name, a folder in the hub's format, an adapter; and what is refused."""

import json
import subprocess
import sys

import numpy as np
import peft
import pytest
import torch
import transformers

import interp
from interp import loading
from interp.loading import CHECKPOINTS
from interp.model.identity import fingerprint
from tests.support import odd_models


@pytest.fixture(scope="module")
def sample():
    return interp.load_samples("digits", split="test", limit=3)[2]


@pytest.fixture
def folder(tmp_path, processor):
    """A small checkpoint as `save_pretrained` writes it for the hub, in two shards."""
    model = odd_models.make("two_to_one", processor, torch.float32)
    model.save_pretrained(tmp_path / "hub", max_shard_size="300KB")
    processor.save_pretrained(tmp_path / "hub")
    assert len(list((tmp_path / "hub").glob("model-*.safetensors"))) > 1
    return tmp_path / "hub", model


def test_tiny_is_small_real_and_trained(tiny):
    text = tiny.model.config.text_config
    assert type(tiny.model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert text.num_hidden_layers >= 6
    assert text.num_attention_heads > text.num_key_value_heads
    assert sum(f.stat().st_size for f in (CHECKPOINTS / "tiny").glob("*.safetensors")) <= 8_000_000
    assert tiny.prompt == "plain"


def test_tiny_answers_in_the_papers_format(tiny, sample):
    completion = tiny.answer(sample.image, sample.question)
    assert completion.is_complete
    assert completion.text == f"<think>\n{completion.thinking}\n</think>\n{completion.answer}"
    alone = [tiny.answer(s.image, s.question) for s in interp.load_samples("digits", limit=3)]
    batch = tiny.answers([(s.image, s.question) for s in interp.load_samples("digits", limit=3)])
    assert [c.token_ids for c in alone] == [c.token_ids for c in batch]


def test_greedy_means_greedy_whatever_the_checkpoint_says(sample):
    """Qwen2.5-VL's own generation config penalises repetition."""
    vlm = interp.load_model("tiny")
    expected = vlm.answer(sample.image, sample.question)
    vlm.model.generation_config.repetition_penalty = 3.0
    assert vlm.answer(sample.image, sample.question) == expected


def test_ledger_and_effects_of_a_sample_are_labelled(tiny, sample):
    completion = tiny.answer(sample.image, sample.question)
    ds = interp.extract.ledger(tiny, sample, completion=completion)
    fx = interp.extract.effects(tiny, sample, completion=completion)
    assert dict(ds.direct.sizes) | {"target": 0, "source": 0} == {
        "target": 0,
        "layer": 6,
        "head": 4,
        "source": 0,
    }
    assert set(ds.target_role.values) == {"thinking", "answer"}
    text = "".join(ds.target_token.values[ds.target_role.values == "answer"])
    assert text == completion.answer
    usual = [name for name in interp.vocabulary.SOURCE_SETS if name != "earlier"]
    assert fx.source_set.values.tolist() == usual
    assert ds.direct.attrs == {"units": "logit", "long_name": "Direct contribution"}
    assert ds.attrs["model"] == "tiny"
    assert ds.attrs["gauge"] == "centered"
    assert float(np.abs(ds.remainder / ds.magnitude).max()) < 1e-5
    gap = np.abs(fx.total - fx.effect.sum("path")).max("source_set")
    assert float((gap / ds.magnitude).max()) < 1e-5
    evidence = fx.effect.sel(source_set="evidence") + fx.effect.sel(source_set="background")
    np.testing.assert_allclose(
        evidence.sel(path="direct"), fx.effect.sel(source_set="image", path="direct"), atol=1e-4
    )
    grid = interp.maps.token_map(ds, "answer")
    assert grid.dims == ("row", "column")
    assert grid.sizes["row"] * 28 == sample.image.height
    by_hand = fx.effect.sel(source_set="image", path="direct")[maps_index(ds)]
    assert float(grid.sum()) == pytest.approx(float(by_hand), abs=1e-4)


def maps_index(ds):
    return interp.maps.target_index(ds, "answer")


def test_both_call_forms_agree(tiny, sample):
    from interp.inputs import prompts as inputs

    first = interp.extract.ledger(tiny, sample)
    made = inputs.teacher_forced(tiny.processor, sample, None)
    second = interp.extract.ledger(
        tiny.model, made.batch, positions=first.target_position.values.tolist()
    )
    np.testing.assert_array_equal(first.direct, second.direct)
    assert first.attrs["model_hash"] == second.attrs["model_hash"]


def test_a_folder_in_the_hubs_format_loads(folder):
    path, model = folder
    vlm = interp.load_model(str(path), prompt="plain", dtype="float32")
    assert fingerprint(vlm.model) == fingerprint(model)
    assert interp.load_model(str(path)).prompt == "think"
    half = interp.load_model(str(path), dtype="bfloat16", attn_implementation="eager")
    assert half.model.dtype == torch.bfloat16
    smaller = interp.load_model(str(path), min_pixels=28 * 28, max_pixels=56 * 56)
    sample = interp.load_samples("digits", limit=1)[0]
    assert interp.extract.ledger(smaller, sample).row.max() <= 1
    larger = interp.load_model(str(path), min_pixels=224 * 224)
    assert interp.extract.ledger(larger, sample).row.max() >= 5
    with pytest.raises(ValueError, match="min_pixels <= max_pixels"):
        interp.load_model(str(path), min_pixels=3000, max_pixels=2000)


def test_a_peft_adapter_loads_and_counts(folder, tmp_path):
    path, model = folder
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    wrapped.save_pretrained(tmp_path / "adapter")
    vlm = interp.load_model(str(path), adapter=str(tmp_path / "adapter"), prompt="plain")
    sample = interp.load_samples("digits", limit=1)[0]
    ds = interp.extract.ledger(vlm, sample)
    plain = interp.extract.ledger(interp.load_model(str(path), prompt="plain"), sample)
    assert float(np.abs(ds.logit - plain.logit).max()) > 1e-3
    assert float(np.abs(ds.remainder / ds.magnitude).max()) < 1e-5
    assert ds.attrs["adapter_hash"] != plain.attrs["adapter_hash"]


def test_what_cannot_be_loaded_is_refused(folder, tmp_path, tried):
    path, model = folder
    for file in path.glob("model*"):
        file.unlink()
    torch.save(model.state_dict(), path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"\*\.safetensors, got \['pytorch_model.bin'\]"):
        interp.load_model(str(path))
    other = tmp_path / "bert"
    transformers.BertConfig(num_hidden_layers=1).save_pretrained(other)
    with pytest.raises(ValueError, match="architecture of .*got 'bert'"):
        interp.load_model(str(other))
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="adapter_model.safetensors"):
        interp.load_model("tiny", adapter=str(tmp_path / "pickled"))
    with pytest.raises(ValueError, match="a prompt of"):
        interp.load_model("tiny", prompt="shout")
    with pytest.raises(ValueError, match="expected a hub id, a folder or one of .*'tiny'"):
        interp.load_model("tinny")
    tried("a checkpoint or an adapter as a pickle", 2, "refused: only safetensors are read")


@pytest.mark.parametrize("device", ["foo", "cuda:99", "meta", " cpu", ""])
def test_a_device_that_is_not_there_is_named(device):
    message = rf"expected a device that this machine has, got '{device}': .*; leave it out"
    with pytest.raises(ValueError, match=message):
        interp.load_model("tiny", device=device)


def test_remote_code_is_never_run(folder, tried):
    path, _ = folder
    (path / "evil.py").write_text("raise SystemExit('ran')")
    config = json.loads((path / "config.json").read_text())
    config["auto_map"] = {"AutoModelForImageTextToText": "evil.Evil", "AutoConfig": "evil.Config"}
    (path / "config.json").write_text(json.dumps(config))
    assert interp.load_model(str(path)).model.config.model_type == "qwen2_5_vl"
    tried("a model folder with code of its own", 1, "the code is not run")


def test_extraction_after_an_adapter_is_added_reads_the_adapter(tiny, sample):
    """nnsight wrapped before peft would capture the base projection without a word."""
    vlm = interp.load_model("tiny")
    before = interp.extract.ledger(vlm, sample)
    wrapped = peft.get_peft_model(vlm.model, peft.LoraConfig(r=2, target_modules=["v_proj"]))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.02)
    loading.self_check(wrapped)
    rows = before.target_position.values.tolist()
    from interp.inputs import prompts as inputs

    batch = inputs.teacher_forced(vlm.processor, sample, None).batch
    after = interp.extract.ledger(wrapped, batch, positions=rows)
    assert float(np.abs(after.remainder / after.magnitude).max()) < 1e-5
    assert float(np.abs(after.direct - before.direct).max()) > 1e-3


def test_importing_is_cheap_and_quiet():
    code = (
        "import sys, interp; print([m for m in ('torch', 'xarray', 'nnsight') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""
