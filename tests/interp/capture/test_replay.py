"""Capturing reads live tensors, notices wrong inputs and leaves the model as it was."""

import copy

import numpy as np
import peft
import pytest
import torch
from einops import rearrange

import interp
from interp import loading
from interp.capture import prefill
from interp.capture import replay as capture
from interp.model import families
from tests.support import reference
from tests.support.odd_models import batch, make


def prefilled(model, inputs, rows):
    rows = torch.tensor(rows)
    return prefill.prefill(model, inputs, rows), rows


def test_attention_rows_equal_eager_attention_weights(odd_model, processor):
    inputs = batch(processor)
    context, rows = prefilled(odd_model, inputs, [20, 55])
    played = capture.replay(odd_model, context, rows)
    clean = reference.Clean(odd_model, inputs)
    for layer, weights in enumerate(played.weights):
        expected = rearrange(clean.attentions[layer][0][:, rows], "h t p -> 1 t h p")
        torch.testing.assert_close(weights, expected, atol=1e-6, rtol=0)


def test_replay_is_the_clean_forward_at_its_rows(odd_model, processor):
    inputs = batch(processor, padding=2)
    context, rows = prefilled(odd_model, inputs, [30, 30, 55])
    played = capture.replay(odd_model, context, rows)
    parts = interp.model.families.parts(odd_model)
    logits = parts.output_embedding(parts.final_norm(played.final[0]))
    torch.testing.assert_close(logits, context.logits, atol=1e-5, rtol=0)


def test_self_check_passes_and_catches_a_model_that_is_not_what_it_reads(odd_model):
    loading.self_check(odd_model)
    layer = families.parts(odd_model).layers[0].attention
    handle = layer.register_forward_hook(lambda module, args, out: (out[0] * 2 + 1, out[1]))
    with pytest.raises(ValueError, match="is a layer changed by hooks"):
        loading.self_check(odd_model)
    handle.remove()
    loading.self_check(odd_model)


def test_self_check_names_layers_whose_values_move_nothing(odd_model):
    with torch.no_grad():
        families.parts(odd_model).layers[1].o_proj.weight.zero_()
    with pytest.raises(ValueError, match=r"cached values to move the result, not in layers \[1\]"):
        loading.self_check(odd_model)


def test_changing_the_captured_values_changes_the_logits(odd_model, processor):
    context, rows = prefilled(odd_model, batch(processor), [55])
    before = capture.replay(odd_model, context, rows).final
    for layer in range(len(context.values)):
        changed = copy.deepcopy(context)
        changed.values[layer].mul_(1.1)
        after = capture.replay(odd_model, changed, rows).final
        assert not torch.allclose(before, after)


def test_the_callers_state_comes_back(odd_model, processor):
    inputs = batch(processor)
    odd_model.train()
    parts = families.parts(odd_model)
    parts.vision_tower.eval()
    for module, name in parts.volatile:
        setattr(module, name, torch.tensor([[7]]))
    modes = [module.training for module in odd_model.modules()]
    before = [odd_model.config._attn_implementation, torch.get_rng_state()]
    interp.extract.effects(odd_model, inputs, positions=[50])
    assert [module.training for module in odd_model.modules()] == modes
    assert odd_model.config.text_config._attn_implementation == before[0]
    assert odd_model.config.vision_config._attn_implementation == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert all(getattr(module, name).item() == 7 for module, name in parts.volatile)
    assert all(p.grad is None for p in odd_model.parameters())


@pytest.mark.parametrize("counted", [True, False])
def test_a_changed_output_embedding_is_noticed(processor, counted):
    """Its mean row is kept between calls; a write through `.data` is not even counted by torch."""
    model, inputs = make("seven_to_one", processor), batch(processor)
    before = interp.extract.ledger(model, inputs, positions=[50])
    change = 0.1 * torch.randn_like(model.lm_head.weight)
    if counted:
        with torch.no_grad():
            model.lm_head.weight += change
    else:
        model.lm_head.weight.data += change
    after = interp.extract.ledger(model, inputs, positions=[50])
    fresh = interp.extract.ledger(copy.deepcopy(model), inputs, positions=[50])
    np.testing.assert_allclose(after.direct, fresh.direct, atol=1e-12)
    assert float(np.abs(after.remainder / after.magnitude).max()) < 1e-6
    assert float(np.abs(after.direct - before.direct).max()) > 1e-3


def test_an_error_inside_leaves_the_model_usable(odd_model, processor):
    inputs = batch(processor)
    expected = interp.extract.ledger(odd_model, inputs, positions=[50])
    weight = families.parts(odd_model).layers[1].ffn.down_proj.weight
    with torch.no_grad():
        kept = weight[0, 0].item()
        weight[0, 0] = float("nan")
        with pytest.raises(ValueError, match="NaN or infinity in the FFN output of layer 1"):
            interp.extract.ledger(odd_model, inputs, positions=[50])
        weight[0, 0] = kept
    again = interp.extract.ledger(odd_model, inputs, positions=[50])
    np.testing.assert_array_equal(again.direct, expected.direct)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.pop("input_ids"), "expected input_ids"),
        (lambda b: b.pop("attention_mask"), "expected attention_mask"),
        (lambda b: b.pop("mm_token_type_ids"), "expected mm_token_type_ids"),
        (lambda b: b.pop("pixel_values"), "expected pixel_values"),
        (lambda b: b.pop("image_grid_thw"), "image"),
        (lambda b: b.update(input_ids=b["input_ids"].roll(1)), "padding|image tokens"),
        (lambda b: b.update(attention_mask=b["attention_mask"].roll(1)), "gaps|shifted"),
        (lambda b: b.update(attention_mask=b["attention_mask"].roll(-1)), "gaps|shifted"),
        (lambda b: b.update(mm_token_type_ids=b["mm_token_type_ids"].roll(1)), "mm_token_type_ids"),
        (lambda b: b.update(pixel_values=b["pixel_values"][4:]), "patches"),
        (lambda b: b.update(image_grid_thw=b["image_grid_thw"] * torch.tensor([2, 1, 1])), "image"),
        (lambda b: b.update(pixel_values_videos=b["pixel_values"]), "video"),
        (lambda b: b.update(input_ids=b["input_ids"].repeat(1, 9)), "shape"),
    ],
)
def test_every_input_that_is_dropped_or_shifted_is_noticed(processor, change, message, tried):
    model = make("two_to_one", processor)
    inputs = batch(processor, padding=2)
    change(inputs)
    with pytest.raises(ValueError, match=message):
        interp.extract.ledger(model, inputs, positions=[50])
    tried("a model input dropped, shifted or of another call", 1, "an error that names it")


def test_sequences_longer_than_the_context_are_refused(processor):
    model = make("two_to_one", processor)
    ids = torch.full((1, 600), 30)
    with pytest.raises(ValueError, match="at most 512 tokens, got 600"):
        interp.extract.ledger(
            model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, positions=[9]
        )


def test_text_alone_is_explained_too(processor):
    model = make("two_to_one", processor)
    ids = torch.arange(20, 60).reshape(1, 40)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    ds = interp.extract.ledger(model, inputs, positions=[30])
    assert float(np.abs(ds.remainder / ds.magnitude).max()) < 1e-6
    with pytest.raises(ValueError, match="source set"):
        interp.extract.effects(model, inputs, positions=[30])


# ------------------------------------------------------------------------------------------- LoRA


def with_lora(model, targets=("q_proj", "v_proj", "o_proj", "lm_head")):
    config = peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.2, target_modules=list(targets))
    return peft.get_peft_model(model, config)


def randomized(model):
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn_like(parameter))
    return model


def test_lora_at_initialisation_equals_the_base_model(processor):
    base, inputs = make("seven_to_one", processor), batch(processor)
    expected = interp.extract.effects(base, inputs, positions=[50, 55])
    before = interp.extract.ledger(base, inputs, positions=[50, 55])
    wrapped = with_lora(base)  # after a first extraction: the wrapping must be made anew
    wrapped.train()
    got = interp.extract.effects(wrapped, inputs, positions=[50, 55])
    after = interp.extract.ledger(wrapped, inputs, positions=[50, 55])
    np.testing.assert_allclose(got.effect, expected.effect, atol=1e-7)
    np.testing.assert_allclose(after.direct, before.direct, atol=1e-7)
    assert after.attrs["adapter_hash"] != before.attrs["adapter_hash"]


def test_merged_lora_equals_unmerged(processor):
    inputs = batch(processor)
    model = randomized(with_lora(make("seven_to_one", processor)))
    ledger = interp.extract.ledger(model, inputs, positions=[50, 55])
    effects = interp.extract.effects(model, inputs, positions=[50, 55])
    assert float(np.abs(ledger.remainder / ledger.magnitude).max()) < 1e-6
    base = interp.extract.ledger(make("seven_to_one", processor), inputs, positions=[50, 55])
    assert float(np.abs(base.direct - ledger.direct).max()) > 1e-3
    merged = model.merge_and_unload()
    again = interp.extract.ledger(merged, inputs, positions=[50, 55])
    np.testing.assert_allclose(again.direct, ledger.direct, atol=1e-6)
    np.testing.assert_allclose(again.value_bias, ledger.value_bias, atol=1e-6)
    again = interp.extract.effects(merged, inputs, positions=[50, 55])
    np.testing.assert_allclose(again.effect, effects.effect, atol=1e-6)


def test_an_adapter_that_is_not_linear_is_refused(processor):
    class Squashed(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.in_features = inner, inner.in_features

        def forward(self, x):
            return self.inner(x).tanh()

    model = make("two_to_one", processor)
    layer = model.model.language_model.layers[2].self_attn
    layer.o_proj = Squashed(layer.o_proj)
    with pytest.raises(ValueError, match="non-linear Squashed at layer 2 o_proj"):
        loading.self_check(model)


# ----------------------------------------------------------------------------------------- errors


def test_what_cannot_be_read_is_refused(processor):
    model = make("two_to_one", processor)
    inputs = batch(processor, padding=2)
    n_tokens = inputs["input_ids"].shape[1]
    ledger, effects = interp.extract.ledger, interp.extract.effects
    cases = [
        (ledger, {"positions": [n_tokens]}, f"{n_tokens - 1}, got {n_tokens}"),
        (ledger, {"positions": [-1]}, "got -1"),
        (ledger, {"positions": [1]}, "outside the padding"),
        (ledger, {"positions": [n_tokens - 1]}, "a token after position"),
        (ledger, {"positions": []}, "at least one target"),
        (ledger, {}, "positions="),
        (ledger, {"positions": [50], "targets": [10**6]}, "target ids in 0..\\d+, got .1000000"),
        (ledger, {"positions": [50], "targets": [-1]}, "target ids in"),
        (ledger, {"positions": [50], "gauge": "contrast", "foils": [-1]}, "foils in"),
        (ledger, {"positions": [50], "targets": [1, 2]}, "2 targets for 1 positions"),
        (ledger, {"positions": [50], "gauge": "cosy"}, "gauge of"),
        (ledger, {"positions": [50], "gauge": "contrast"}, "foils="),
        (ledger, {"positions": [50], "gauge": "contrast", "foils": [1, 2]}, "one foil per target"),
        (ledger, {"positions": [50], "gauge": "contrast", "foils": "worst"}, "the text 'worst'"),
        (ledger, {"positions": [50], "detail": "lots"}, "detail of"),
        (effects, {"positions": [50], "mode": "gentle"}, "mode of"),
        (effects, {"positions": [50], "sources": {"a": [5, 5]}}, "distinct rows"),
        (effects, {"positions": [50], "sources": {"a": [n_tokens]}}, "distinct rows"),
        (effects, {"positions": [50], "sources": {"a": [0]}}, "outside the padding"),
        (effects, {"positions": [50], "sources": {"a": []}}, "distinct rows"),
        (effects, {"positions": [50], "sources": {"a": [20, 50]}, "mode": "mean"}, "split it"),
        (
            effects,
            {"positions": [50], "sources": {"a": [49]}, "mode": "mean"},
            "expected a question",
        ),
        (effects, {"positions": [50], "sources": ["evidence"]}, "source sets of"),
        (interp.extract.residual, {"positions": [n_tokens]}, "positions in"),
    ]
    for function, options, message in cases:
        with pytest.raises(ValueError, match=message):
            function(model, inputs, **options)


def test_sliding_windows_and_sharded_weights_are_refused(processor):
    model = make("two_to_one", processor)
    model.config.text_config.layer_types[1] = "sliding_attention"
    with pytest.raises(ValueError, match=r"full attention in every layer"):
        interp.extract.ledger(model, batch(processor), positions=[50])
    model = make("two_to_one", processor)
    weight = model.model.language_model.layers[0].mlp.down_proj
    weight.weight = torch.nn.Parameter(torch.empty(0))
    with pytest.raises(ValueError, match="size zero for model.language_model.layers.0.mlp"):
        interp.extract.ledger(model, batch(processor), positions=[50])
