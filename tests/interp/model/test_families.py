"""The seam for model families: what a family's file says decides, and nothing else."""

import copy
import os
from dataclasses import replace

import peft
import pytest
import torch
from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLProcessor

import interp
from interp.model import families
from interp.model.families import qwen2_5_vl
from interp.model.vlm import VLM
from interp.validate import certify
from tests.support import odd_models
from tests.support.odd_models import batch, make


@pytest.fixture
def model(processor):
    return make("two_to_one", processor)


def family(monkeypatch, **changed):
    """Qwen2.5-VL with other parts than its file says."""
    right = qwen2_5_vl.locate
    monkeypatch.setattr(qwen2_5_vl, "locate", lambda model: replace(right(model), **changed))


def test_parts_are_the_models_own_modules(model):
    parts = families.parts(model)
    assert parts.n_layers == len(parts.layers) == model.config.text_config.num_hidden_layers
    named = dict(model.named_modules())
    prefix = "model.language_model.layers.1"
    layer = parts.layers[1]
    assert layer.block is named[prefix]
    assert layer.attention is named[f"{prefix}.self_attn"]
    assert layer.v_proj is named[f"{prefix}.self_attn.v_proj"]
    assert layer.o_proj is named[f"{prefix}.self_attn.o_proj"]
    assert layer.ffn is named[f"{prefix}.mlp"]
    assert layer.attention_norm is named[f"{prefix}.input_layernorm"]
    assert layer.ffn_norm is named[f"{prefix}.post_attention_layernorm"]
    assert parts.final_norm is named["model.language_model.norm"]
    assert parts.d_head * parts.n_heads == model.config.text_config.hidden_size
    assert parts.n_injected == 0


def test_a_head_width_of_the_config_counts(model):
    model.config.text_config.head_dim = 5  # as in Qwen3-VL, where it is not width / heads
    assert families.parts(model).d_head == 5


def test_an_architecture_without_a_file_is_refused(model, monkeypatch):
    monkeypatch.delitem(families.MODEL_FAMILIES, "qwen2_5_vl")
    with pytest.raises(ValueError, match="got 'qwen2_5_vl'; add its file to interp/model/families"):
        families.parts(model)


@pytest.mark.parametrize("family", families.NOT_EXACT)
def test_a_family_that_cannot_be_exact_is_refused_with_the_reason(family, tmp_path):
    config = AutoConfig.for_model(family)
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"got '{family}'; no exact ledger: ") as error:
        interp.load_model(tmp_path)
    assert families.NOT_EXACT[family] in str(error.value) and "\n" not in str(error.value)


def test_what_a_forward_changes_comes_back(model, processor, monkeypatch):
    """Attributes that a family names as volatile are as they were, whatever reads the model."""
    model.model.rope_deltas = kept = torch.tensor([[7]])
    inputs = batch(processor)
    interp.extract.ledger(model, inputs, positions=[9])
    assert model.model.rope_deltas is kept
    family(monkeypatch, volatile=())
    interp.extract.ledger(model, inputs, positions=[9])
    assert model.model.rope_deltas is not kept  # so that the test above can fail
    assert odd_models.vlm(model, processor).device.type == "cpu"


def test_another_family_of_the_same_algebra_needs_one_file(processor, monkeypatch):
    """Without its file a Qwen2-VL is refused; with it, it passes every oracle."""
    vlm, sample = odd_models.vlm(make("one_to_one", processor), processor), odd_models.sample()
    assert vlm.model.config.model_type == "qwen2_vl"
    with monkeypatch.context() as changed:
        changed.delitem(families.MODEL_FAMILIES, "qwen2_vl")
        with pytest.raises(ValueError, match="got 'qwen2_vl'; add its file"):
            families.parts(vlm.model)
    assert certify(vlm, [sample], witness=False).is_passed


ROPES = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 2.0, "original_max_position_embeddings": 32},
    "llama3": {
        "factor": 2.0,
        "original_max_position_embeddings": 32,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
    "longrope": {
        "factor": 2.0,
        "original_max_position_embeddings": 20,
        "short_factor": [1.0] * 16,
        "long_factor": [2.0] * 16,
    },
}


def with_rope(name: str) -> VLM:
    """The embedded model with positions encoded in another way."""
    tiny = interp.load_model("tiny")
    config = copy.deepcopy(tiny.model.config)
    rope = config.text_config.rope_parameters | {"rope_type": name} | ROPES[name]
    config.text_config.rope_parameters = rope
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    model.load_state_dict(tiny.model.state_dict())
    return odd_models.vlm(model, tiny.processor)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.long if n == "dynamic" else ())
        for n in ROPES
        if n != "longrope"
    ],
)
def test_positions_encoded_alike_at_every_length_are_exact(name):
    vlm, sample = with_rope(name), interp.load_samples("digits", limit=1)[0]
    other = interp.load_model("tiny")
    for rows in ([5], [5, 40]):  # rows that are replayed alone, and at once with later ones
        ledger = interp.extract.ledger(vlm, sample, positions=rows)
        assert float((abs(ledger.remainder) / ledger.magnitude).max()) < 1e-5
        if name != "dynamic":  # which changes nothing up to the length of the config
            same = interp.extract.ledger(other, sample, positions=rows)
            assert float(abs(ledger.direct - same.direct).max()) > 1e-3
    if name in ("dynamic", "yarn") or "SOAK" in os.environ:
        assert certify(vlm, [sample], witness=False).is_passed


def test_positions_encoded_by_the_texts_length_are_refused():
    """Replayed alone an early row would get the frequencies of a short text; effects were wrong."""
    vlm, sample = with_rope("longrope"), interp.load_samples("digits", limit=1)[0]
    for call in ("ledger", "effects", "maps"):
        with pytest.raises(ValueError, match="alike at every length, got rope_type 'longrope'"):
            getattr(interp.extract, call)(vlm, sample)


def test_an_adapter_that_acts_behind_its_tokens_alone_is_refused():
    vlm, sample = interp.load_model("tiny"), interp.load_samples("digits", limit=1)[0]
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj"], alora_invocation_tokens=[30]
    )
    model = peft.get_peft_model(vlm.model, config)
    with pytest.raises(ValueError, match="on every token alike, got an activated LoRA"):
        interp.extract.effects(replace(vlm, model=model), sample)
    model.unload()
    interp.extract.effects(vlm, sample)


def test_a_folder_of_qwen2_vl_loads_and_is_outlined(processor, tmp_path):
    model = make("one_to_one", processor, torch.float32)
    model.save_pretrained(tmp_path)
    kinds = (processor.image_processor, processor.tokenizer, processor.video_processor)
    Qwen2VLProcessor(*kinds, chat_template=processor.chat_template).save_pretrained(tmp_path)
    vlm, sample = interp.load_model(tmp_path, prompt="plain"), odd_models.sample()
    assert type(vlm.processor) is Qwen2VLProcessor
    maps = interp.extract.maps(vlm, sample, kinds=("direct", "effect"))
    assert maps.vlm.map("answer", "effect").shape == (
        sample.image.height // 28,
        sample.image.width // 28,
    )
    ledger = interp.extract.ledger(vlm, sample)
    assert float((abs(ledger.remainder) / ledger.magnitude).max()) < 1e-5

    narrow = interp.loading.outline(tmp_path, is_narrow=True)
    heads = families.parts(narrow.model).n_heads
    assert narrow.model.config.text_config.hidden_size == 8 * heads
    assert interp.extract.ledger(narrow, sample).direct.shape[1:3] == ledger.direct.shape[1:3]
    short = interp.loading.outline(tmp_path, depth=(1, 1))
    assert (families.parts(short.model).n_layers, len(short.model.model.visual.blocks)) == (1, 1)
    assert interp.extract.ledger(short, sample).sizes["head"] == heads
