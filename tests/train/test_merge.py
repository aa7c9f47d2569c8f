"""Base and adapter as one model: the same logits, prompt and pixels, or refused."""

import json
import sys

import peft
import pytest
import torch

import interp
from interp.model.adapters import NotMerged, merged, name_base
from train import merge

TEXT = r".*language_model.*\."
KINDS = {
    "LoRA": peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
    "the embedding of a tied pair": peft.LoraConfig(
        r=4, target_modules=TEXT + "(q_proj|embed_tokens)"
    ),
    "the head of a tied pair": peft.LoraConfig(r=4, target_modules=["q_proj", "lm_head"]),
    "a saved head": peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "trainable tokens": peft.LoraConfig(
        r=4, target_modules=["q_proj"], trainable_token_indices=[30, 31]
    ),
    "DoRA": peft.LoraConfig(r=4, target_modules=["q_proj"], use_dora=True),
    "IA3": peft.IA3Config(
        target_modules=["v_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
}


def tuned(config):
    model = peft.get_peft_model(interp.load_model("tiny").model, config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(20, 60)[None]).logits


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_model_has_the_adapters_logits_also_from_disk(kind, tmp_path):
    model = tuned(KINDS[kind])
    expected = logits(model)
    whole = merged(model)
    torch.testing.assert_close(logits(whole), expected, atol=1e-4, rtol=1e-4)
    whole.save_pretrained(tmp_path)
    interp.load_model("tiny").processor.save_pretrained(tmp_path)
    again = interp.load_model(str(tmp_path)).model
    torch.testing.assert_close(logits(again), expected, atol=1e-4, rtol=1e-4)


def test_what_cannot_be_merged_is_refused():
    config = peft.LoraConfig(r=4, target_modules=TEXT + "o_proj", lora_bias=True)
    with pytest.raises(NotMerged, match="expected an adapter that can be merged, got"):
        merged(tuned(config))


def test_a_merged_model_with_other_logits_is_refused(monkeypatch):
    model = tuned(KINDS["LoRA"])
    monkeypatch.setattr(model, "merge_and_unload", lambda: interp.load_model("tiny").model)
    with pytest.raises(NotMerged, match="a merged model with the adapter's logits, got a diff"):
        merged(model)


def test_the_command_keeps_prompt_and_pixels(tmp_path, monkeypatch):
    vlm = interp.load_model("tiny-cold", prompt="think", max_pixels=20000)
    adapter = peft.get_peft_model(vlm.model, KINDS["LoRA"])
    adapter.save_pretrained(tmp_path / "adapter")
    name_base(tmp_path / "adapter", vlm, max_pixels=20000)
    arguments = ["x", str(tmp_path / "adapter"), "--out", str(tmp_path / "whole")]
    monkeypatch.setattr(sys, "argv", arguments)
    merge.main()
    whole = interp.load_model(str(tmp_path / "whole"))
    assert whole.prompt == "think"
    assert whole.processor.image_processor.size["longest_edge"] == 20000
    assert json.loads((tmp_path / "whole/prompt.json").read_text()) == {"prompt": "think"}
