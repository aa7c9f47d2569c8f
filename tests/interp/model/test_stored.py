"""Checkpoints and adapters load whole or not at all: every kind of stray tensor, by name."""

import json
import logging
import shutil

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import interp
from interp.loading import CHECKPOINTS
from interp.model.adapters import name_base
from interp.model.families.qwen2_5_vl import OLD_KEYS

MODEL, ADAPTER = "model.safetensors", "adapter_model.safetensors"
DOWN = "layers.3.mlp.down_proj.weight"


@pytest.fixture
def edited(tmp_path):
    """A copy of an embedded checkpoint or adapter with its tensors or its config changed."""

    def make(name, tensors=lambda w: w, config=None):
        folder = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(CHECKPOINTS / name, folder)
        file = folder / (ADAPTER if (folder / ADAPTER).exists() else MODEL)
        content = {k: v.contiguous().clone() for k, v in tensors(load_file(file)).items()}
        save_file(content, file, metadata={"format": "pt"})
        if config:
            path = folder / ("adapter_config.json" if file.name == ADAPTER else "config.json")
            path.write_text(json.dumps(config(json.loads(path.read_text()))))
        return str(folder)

    return make


def without(*parts):
    return lambda w: {k: v for k, v in w.items() if not any(part in k for part in parts)}


def with_layers(n):
    def change(config):
        text = config.get("text_config", config)
        text["num_hidden_layers"] = n
        text["layer_types"] = ["full_attention"] * n
        return config

    return change


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        (without(DOWN), None, f"a tensor for every weight, got none for .*{DOWN}"),
        (without("layers.3."), None, r"every weight, got none for .* and \d+ more"),
        (without("visual."), None, "every weight, got none for model.visual"),
        (without("embed_tokens"), None, "every weight, got none for"),
        (lambda w: w | {"model.extra": torch.zeros(3)}, None, "no tensor but .*, got also .*extra"),
        (
            lambda w: {k: v[:-1] if DOWN in k else v for k, v in w.items()},
            None,
            rf"tensors of the weights' shapes, got others: .*{DOWN} \(127, 384\) for \(128, 384\)",
        ),
        (lambda w: w, with_layers(5), "no tensor but the model's, got also .*layers.5"),
        (lambda w: w, with_layers(7), "every weight, got none for .*layers.6"),
        (
            lambda w: w,
            lambda c: c | {"dtype": "bfloat16"},
            "expected tensors that bfloat16 holds, as its config says, got float32 for .*; name a",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(edited, tensors, config, message):
    with pytest.raises(ValueError, match=message) as caught:
        interp.load_model(edited("tiny", tensors, config))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_dtype_that_is_named_may_round(edited):
    folder = edited("tiny", config=lambda c: c | {"dtype": "bfloat16"})
    assert interp.load_model(folder, dtype="bfloat16").model.dtype == torch.bfloat16
    assert interp.load_model("tiny").model.dtype == torch.float32
    half = edited("tiny", lambda w: {k: v.bfloat16() for k, v in w.items()})
    assert interp.load_model(half, dtype="float32").model.dtype == torch.float32


def logits(name, **options):
    vlm = interp.load_model(name, **options)
    sample = interp.load_samples("digits", limit=7)[6]
    return torch.tensor(interp.extract.ledger(vlm, sample, detail="summary")["logit"].values)


@pytest.mark.parametrize(("old", "new"), OLD_KEYS[1:])
def test_old_keys_of_an_adapter_are_renamed_where_all_fit(edited, old, new, caplog):
    """The same logits, or no key that the name stands for: never the base's numbers."""
    keys = load_file(CHECKPOINTS / "tiny-effect" / ADAPTER)
    if not any(key.startswith(new) for key in keys):
        pytest.skip("the embedded adapters are on the language model's layers")

    def rename(w):
        return {old + k.removeprefix(new) if k.startswith(new) else k: v for k, v in w.items()}

    with caplog.at_level(logging.WARNING):
        found = logits(edited("tiny-effect", rename))
    assert "keys of an older transformers renamed" in caplog.text
    assert torch.equal(found, logits("tiny-effect"))
    assert not torch.allclose(found, logits("tiny-cold"), atol=1e-3)


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        (
            without("lora_B"),
            None,
            "every weight of the adapter, got none for .*lora_B",
        ),
        (without("layers.2."), None, "every weight of the adapter, got none for .*layers.2"),
        (lambda w: {"x": torch.zeros(1)}, None, "no tensor but the adapter's, got also x"),
        (lambda w: w | {"x": torch.zeros(1)}, None, "no tensor but the adapter's, got also x"),
        (
            lambda w: {k.replace("self_attn", "attention"): v for k, v in w.items()},
            None,
            "no tensor but the adapter's, got also .*attention",
        ),
        (
            lambda w: w,
            lambda c: c | {"r": 8},
            "the shapes that its adapter_config.json says, got size mismatch for",
        ),
        (lambda w: w, lambda c: c | {"target_modules": ["q_proj"]}, "no tensor but the adapter's"),
    ],
)
@pytest.mark.parametrize("is_named", [True, False])
def test_an_adapter_that_does_not_fit_is_refused_by_name(
    edited, tensors, config, message, is_named
):
    folder = edited("tiny-effect", tensors, config)
    name = folder if is_named else "tiny-cold"
    with pytest.raises(ValueError, match=message) as caught:
        interp.load_model(name, adapter=None if is_named else folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_an_adapter_that_only_prompts_is_refused(tmp_path, kind):
    vlm = interp.load_model("tiny-cold")
    options = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 4}
    if kind == "prompt":
        config = peft.PromptTuningConfig(**options, token_dim=128, num_layers=6)
    else:
        config = peft.PrefixTuningConfig(
            **options, token_dim=64, num_layers=6, num_attention_heads=2
        )
    peft.get_peft_model(vlm.model, config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="an adapter that changes weights, got P"):
        interp.load_model("tiny-cold", adapter=str(tmp_path))


ROUND_TRIPS = {
    "LoRA": peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
    "DoRA": peft.LoraConfig(r=4, target_modules=["q_proj"], use_dora=True),
    "rsLoRA with biases": peft.LoraConfig(r=4, target_modules=["v_proj"], bias="lora_only"),
    "LoRA and a saved head": peft.LoraConfig(
        r=4, target_modules=["q_proj"], modules_to_save=["down_proj"]
    ),
    "IA3": peft.IA3Config(
        target_modules=["v_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "LoHa": peft.LoHaConfig(r=4, target_modules=["v_proj"]),
    "LoKr": peft.LoKrConfig(r=4, target_modules=["v_proj"]),
    "OFT": peft.OFTConfig(r=0, oft_block_size=4, target_modules=["v_proj"]),
    "VeRA": peft.VeraConfig(r=4, target_modules=["up_proj"]),
    "AdaLoRA": peft.AdaLoraConfig(r=4, target_modules=["v_proj"], total_step=10),
}


@pytest.mark.parametrize("kind", ROUND_TRIPS)
def test_adapters_of_every_kind_come_back_as_they_were(tmp_path, kind):
    vlm = interp.load_model("tiny-cold")
    model = peft.get_peft_model(vlm.model, ROUND_TRIPS[kind]).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    model.save_pretrained(tmp_path)
    name_base(tmp_path, vlm)
    ids = torch.arange(20, 30)[None]
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        found = interp.load_model(str(tmp_path)).model(input_ids=ids).logits
    assert torch.equal(found, expected)
