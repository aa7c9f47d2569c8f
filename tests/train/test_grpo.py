"""GRPO in miniature: exact resumption, a reward that changes nothing but what it pays."""

import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file
from trl import GRPOConfig

import interp
from interp.inputs import prompts as inputs
from interp.model.vlm import PROMPTS
from tests.support import ROOT
from train import grpo
from train.rewards import Reward

OWN = (grpo.Policy, grpo.Task, grpo.Guide)


def run(out, **changed):
    """`python -m train.grpo` with tiny's configuration, smaller, in this process."""
    content = yaml.safe_load((ROOT / "train/configs/tiny-direct.yaml").read_text())
    content |= {
        "model_name_or_path": "tiny",
        "output_dir": str(out),
        "n_samples": 8,
        "per_device_train_batch_size": 4,
        "num_generations": 2,
        "max_steps": 4,
        "max_completion_length": 24,
        "save_steps": 2,
        "save_total_limit": 2,
        "temperature": 1.5,
        "warmup_steps": 0,
        "disable_tqdm": True,
    }
    content |= changed
    own = [
        one(**{name: content.pop(name) for name in set(one.__dataclass_fields__) & set(content)})
        for one in OWN
    ]
    grpo.main(*own, GRPOConfig(**content))
    return load_file(Path(out) / "final" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of four steps, and what the reward was given on the way."""
    out, seen = tmp_path_factory.mktemp("grpo") / "whole", []
    call = Reward.__call__

    def spy(self, *args, **given):
        seen.append((given, torch.is_grad_enabled(), self.vlm))
        return call(self, *args, **given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reward, "__call__", spy)
        weights = run(out)
    return out, weights, seen


def test_an_interrupted_run_resumes_bit_for_bit(whole, tmp_path):
    """Four steps equal two and, after an interruption, two more."""
    out, weights, _ = whole
    assert any(one.abs().max() > 0 for name, one in weights.items() if "lora_B" in name)
    halves = tmp_path / "halves"
    halves.mkdir()
    (out / "checkpoint-2").rename(halves / "checkpoint-2")
    again = run(halves)
    assert all(torch.equal(weights[name], again[name]) for name in weights)


@pytest.mark.long
def test_measuring_saliency_changes_no_bit_of_the_training(tmp_path, caplog):
    """Accuracy + format with a map measured and unpaid, and without the extractor."""
    caplog.set_level(logging.WARNING)
    arms = [{"map": "none"}, {"map": "direct", "saliency_weight": 0.0}, {"map": "effect"}]
    # From the cold start, which is of two minds: there is something to learn in two steps.
    found = [
        run(
            tmp_path / str(k), max_steps=2, model_name_or_path="tiny-cold", num_generations=4, **arm
        )
        for k, arm in enumerate(arms)
    ]
    *unpaid, paid = found
    assert any(one.abs().max() > 0 for name, one in unpaid[0].items() if "lora_B" in name)
    for other in unpaid[1:]:
        assert all(torch.equal(unpaid[0][name], other[name]) for name in other)
    assert any(not torch.equal(unpaid[0][name], paid[name]) for name in paid)


def test_the_reward_reads_the_policy_and_the_prompts_that_were_sampled_from(whole):
    out, _, seen = whole
    assert len(seen) == 4
    for given, _, vlm in seen:
        assert vlm.model.peft_config
        for sample, prompt in zip(given["sample"], given["prompts"], strict=True):
            assert prompt[-1]["content"][-1]["text"] == sample.question
            mine = inputs.prompts(
                vlm.processor, [(sample.image, sample.question)], PROMPTS[vlm.prompt]
            )["input_ids"][0]
            theirs = vlm.processor.apply_chat_template(
                [prompt], add_generation_prompt=True, tokenize=True, return_dict=True
            )["input_ids"][0]
            assert mine.tolist() == list(theirs)
    assert json.loads((out / "certificate.json").read_text())["is_passed"]


def test_the_adapter_names_its_base_and_fits_no_other(whole, tmp_path):
    out, _, _ = whole
    vlm = interp.load_model(str(out / "final"))
    assert vlm.name == "tiny"
    assert vlm.prompt == "plain"
    assert vlm.fingerprint == interp.load_model("tiny").fingerprint
    sample = interp.load_samples("digits", limit=1)[0]
    ds = interp.extract.ledger(vlm, sample)
    assert (
        ds.attrs["adapter_hash"]
        != interp.extract.ledger(interp.load_model("tiny"), sample).attrs["adapter_hash"]
    )
    said = json.loads((out / "final/base.json").read_text())
    config = json.loads((out / "final/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == said["base"] == "tiny"
    (out / "final/base.json").write_text(json.dumps(said | {"base_hash": "0" * 16}))
    with pytest.raises(ValueError, match="expected the model it was trained on .tiny, weights 0"):
        interp.load_model(str(out / "final"))
    with pytest.raises(ValueError, match="expected the model it was trained on"):
        interp.load_model("tiny", adapter=str(out / "final"))
    (out / "final/base.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match="expected one adapter"):
        interp.load_model(str(out / "final"), adapter="other")


def test_the_log_has_every_part_and_no_number_that_is_none(whole):
    out, _, _ = whole
    steps = pd.read_csv(out / "final/curves.csv")
    assert steps["step"].tolist() == [1, 2, 3, 4]
    assert np.isfinite(steps.to_numpy()).all()
    for row in steps.to_dict("records"):
        assert 0 < row["seconds/saliency"] < row["step_time"]
        assert {
            "accuracy",
            "format",
            "saliency",
            "text/tokens",
            "text/empty_thinking",
            "skipped/no verdict",
        } <= set(row)
        assert row["reward"] == pytest.approx(
            row["accuracy"] + row["format"] + row["saliency"], abs=1e-3
        )


def test_a_judge_that_is_out_leaves_the_weights_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(grpo, "judge_from_environment", lambda: lambda *_: None)
    weights = run(tmp_path, max_steps=1, beta=0.0)
    assert all(one.abs().max() == 0 for name, one in weights.items() if "lora_B" in name)


def test_another_training_in_the_same_folder_is_refused(whole):
    """Its adapter would tell of a reward that it was not trained on."""
    with pytest.raises(ValueError, match="got other .'map': .'direct', 'effect'.. .before, now."):
        run(whole[0], map="effect")
    with pytest.raises(ValueError, match="expected lora_r > 0"):
        run(whole[0], lora_r=0)


def test_secrets_in_a_file_are_refused(tmp_path, monkeypatch):
    from train.options import parsed

    path = tmp_path / "c.yaml"
    path.write_text("env: {OPENAI_API_KEY: sk-1, OMP_NUM_THREADS: 2}\noutput_dir: x\n")
    monkeypatch.setattr("sys.argv", ["grpo", "--config", str(path)])
    with pytest.raises(ValueError, match="no secrets under env:, got .'OPENAI_API_KEY'."):
        parsed(GRPOConfig)


def test_a_configuration_that_is_not_there_ends_in_one_line(monkeypatch, capsys):
    from train.options import given

    monkeypatch.setattr("sys.argv", ["grpo", "--config", "/nowhere.yaml"])
    with pytest.raises(SystemExit) as ended:
        given(GRPOConfig)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1


def test_every_configuration_can_be_read(monkeypatch):
    """Real configurations are parsed by the command's own parser; none is run."""
    from trl import SFTConfig

    from train import sft
    from train.guide import Guide, losses_of
    from train.options import parsed

    paths = sorted((ROOT / "train/configs").glob("*.yaml"))
    papers = {"", "-ease", "-faithful", "-focus"}
    sizes = ("qwen2.5-vl-3b", "qwen2.5-vl-7b", "qwen3-vl-4b", "qwen3-vl-8b")
    assert {f"{size}{paper}" for size in sizes for paper in papers} <= {one.stem for one in paths}
    for path in paths:
        monkeypatch.setattr(
            "sys.argv", ["x", "--config", str(path), "--bf16", "False", "--use_cpu", "True"]
        )
        is_grpo = "num_generations" in path.read_text()
        classes = (grpo.Task, Guide, GRPOConfig) if is_grpo else (sft.Data, SFTConfig)
        policy, task, *guide, config = parsed(grpo.Policy, *classes)
        assert task.n_samples > 0
        if path.name.startswith("qwen"):
            assert "Not run here." in path.read_text()
            assert path.stem in path.read_text().split("model_name_or_path")[0]
            assert policy.prompt == "think"
            assert policy.lora_dropout == 0 or not is_grpo
        needs_graph = bool(is_grpo and losses_of(*guide)) or getattr(task, "focus_weight", 0)
        if needs_graph and config.gradient_checkpointing:
            assert config.gradient_checkpointing_kwargs == {"use_reentrant": False}
        if is_grpo and path.name.startswith("qwen"):
            assert terms_are_of(path.stem, task, *guide)
            size = config.per_device_train_batch_size * config.gradient_accumulation_steps * 8
            is_ease = path.stem.endswith("-ease")  # completions in a step, on eight processes
            expected = (5, 1e-6, 2560, 1024) if is_ease else (8, 1e-5, 64, 512)
            facts = (config.num_generations, config.learning_rate, size)
            assert (*facts, config.max_completion_length) == expected
            assert (policy.lora_r, policy.lora_targets) == (16, ["q_proj", "v_proj"])
            assert (config.beta, config.epsilon_high) == (
                (0.0, 0.3) if config.loss_type == "dapo" else (0.001, config.epsilon_high)
            )


def terms_are_of(stem: str, task, guide) -> bool:
    """Whether a configuration trains on what its name says, and on nothing else."""
    found = (task.map, task.counterfactual, bool(guide.ease_weight), bool(guide.gradient_weight))
    by_name = {
        "ease": ("none", "", True, False),
        "faithful": ("none", "in-box", False, False),
        "gradient": ("none", "", False, True),
    }
    return found == by_name.get(stem.rpartition("-")[2], ("direct", "", False, False))
