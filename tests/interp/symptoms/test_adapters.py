"""Adapters as users of peft found them wrong, and odd ones of our own."""

import warnings
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch

import interp
from tests.support.symptoms import TWO, adapted, assert_exact, lora, raw_logits, shake


def test_merging_one_of_two_active_adapters_stays_exact(own, sample):
    """Once one adapter is merged, the other active one is silently not applied.

    huggingface/peft #3756, Merging a subset of the active adapters silently disables the remaining
    """
    vlm = adapted(own, lora(), name="A")
    vlm.model.add_adapter("B", lora())
    shake(vlm.model, seed=1)
    vlm.model.base_model.set_adapter(["A", "B"])
    vlm.model.eval()
    both = assert_exact(vlm, sample)
    vlm.model.merge_adapter(adapter_names=["A"])
    one = assert_exact(vlm, sample)
    assert float(np.abs(one.logit - both.logit).max()) > 1e-3
    assert one.attrs["adapter_hash"] != both.attrs["adapter_hash"]


def test_merging_twice_changes_nothing(own, sample):
    """Merging again adds the adapter again (huggingface/peft PR #1355, merging idempotent)."""
    from interp.model.adapters import merged

    vlm = adapted(own, lora())
    expected = raw_logits(vlm, sample, [50, 55])
    vlm.model.merge_adapter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        vlm.model.merge_adapter()
        assert_exact(vlm, sample)
        whole = replace(vlm, model=merged(vlm.model))
    np.testing.assert_allclose(raw_logits(whole, sample, [50, 55]), expected, atol=1e-3)


def test_a_base_that_peft_changed_in_place_is_told(own, sample):
    """get_peft_model changes the base model in place; whoever holds the base measures the adapter.

    huggingface/peft #932, #940 and PR #2313
    """
    before = assert_exact(own, sample)
    adapted(own, lora())  # `own` still holds the base
    after = assert_exact(own, sample)
    assert float(np.abs(after.logit - before.logit).max()) > 1e-3
    assert after.attrs["adapter_hash"] != before.attrs["adapter_hash"]


@pytest.mark.parametrize(
    "pattern",
    [
        {"alpha_pattern": {"v_proj": 64}},
        {"rank_pattern": {"v_proj": 2}},
        {"alpha_pattern": {"^v_proj": 64}},
        {"use_rslora": True},
        {"layers_to_transform": [1, 4], "layers_pattern": "layers"},
    ],
    ids=str,
)
def test_patterns_of_ranks_and_scales_are_read(own, sample, tmp_path, pattern):
    """Patterns for single modules are not applied, or only on one of two ways.

    huggingface/peft #3582, rank_pattern / alpha_pattern keys that match zero layers are silent
    """
    vlm = adapted(own, lora(**pattern))
    expected = assert_exact(vlm, sample)
    vlm.model.save_pretrained(tmp_path / "an adapter é")
    again = interp.load_model("tiny", adapter=tmp_path / "an adapter é")
    np.testing.assert_allclose(assert_exact(again, sample).logit, expected.logit, atol=1e-4)


def test_two_dora_adapters_are_merged_right_or_not_at_all(own, sample):
    """Two DoRA adapters merge to another model (huggingface/peft #3608)."""
    from interp.model.adapters import NotMerged, merged

    config = lora(target_modules=["v_proj"], use_dora=True)
    vlm = adapted(own, config, name="A")
    vlm.model.add_adapter("B", config)
    shake(vlm.model, 0.2, seed=1)
    vlm.model.base_model.set_adapter(["A", "B"])
    vlm.model.eval()
    expected = raw_logits(vlm, sample, [50, 55])
    try:
        whole = replace(vlm, model=merged(vlm.model))
    except NotMerged:
        return
    np.testing.assert_allclose(raw_logits(whole, sample, [50, 55]), expected, atol=2e-3)


def test_a_disabled_adapter_is_the_base(own, sample):
    """Inside disable_adapter the adapter is measured all the same (huggingface/peft #515)."""
    before = assert_exact(own, sample)
    vlm = adapted(own, lora())
    with vlm.model.disable_adapter():
        inside = assert_exact(vlm, sample)
    np.testing.assert_allclose(inside.logit, before.logit, atol=1e-5)
    assert float(np.abs(assert_exact(vlm, sample).logit - before.logit).max()) > 1e-3


@pytest.mark.parametrize("how", ["pissa", "olora"])
def test_an_adapter_that_changes_its_base_is_loaded_right_or_refused(own, sample, tmp_path, how):
    """PiSSA and OLoRA change the base's weights; their adapter alone is another model.

    huggingface/peft #2184 and #2270, PiSSA Updates Base Model Weights Silently
    """
    vlm = adapted(own, lora(init_lora_weights=how))
    expected = raw_logits(vlm, sample, [50, 55])
    vlm.model.save_pretrained(tmp_path / "a")
    try:
        again = interp.load_model("tiny", adapter=tmp_path / "a")
    except ValueError:
        return
    np.testing.assert_allclose(raw_logits(again, sample, [50, 55]), expected, atol=2e-3)


def test_a_second_adapter_that_is_only_loaded_changes_nothing(own, sample):
    """Adding a second adapter switches the model over (huggingface/peft #1064)."""
    vlm = adapted(own, lora(), name="A")
    before = assert_exact(vlm, sample)
    vlm.model.add_adapter("B", lora(r=8))
    vlm.model.eval()
    np.testing.assert_array_equal(assert_exact(vlm, sample).logit, before.logit)


def test_an_adapter_without_effect_is_the_base(own, sample):
    """A fresh LoRA (B = 0) changes no number."""
    before = assert_exact(own, sample)
    model = peft.get_peft_model(own.model, lora()).eval()
    after = assert_exact(replace(own, model=model), sample)
    np.testing.assert_allclose(after.logit, before.logit, atol=1e-6)


def test_a_scale_that_is_turned_is_followed(own, sample):
    """set_scale: the strength of an adapter is changed in place, also below zero."""
    vlm = adapted(own, lora(target_modules=["v_proj", "o_proj"]))
    hashes = set()
    for scale in (1.0, -2.0, 0.0):
        for module in vlm.model.modules():
            if hasattr(module, "set_scale"):
                module.set_scale("default", scale)
        hashes.add(assert_exact(vlm, sample).attrs["adapter_hash"])
    assert len(hashes) == 3


def test_an_adapter_on_the_vision_tower_is_read(own, sample):
    """LoRA on the vision tower's qkv alone."""
    before = assert_exact(own, sample)
    vlm = adapted(own, lora(target_modules=r".*visual.*(qkv|proj)"), scale=0.2)
    after = assert_exact(vlm, sample)
    assert float(np.abs(after.logit - before.logit).max()) > 1e-4


@pytest.mark.parametrize(
    "form", ["spaces", "unicode", "relative", "trailing slash", "link", "Path"]
)
def test_an_adapter_at_any_path_is_loaded(own, sample, tmp_path, monkeypatch, form):
    """Spaces, letters, relative paths, slashes and links in the path of an adapter."""
    vlm = adapted(own, lora())
    expected = raw_logits(vlm, sample, [50, 55])
    folder = tmp_path / {"spaces": "an adapter", "unicode": "ünï 图"}.get(form, "a")
    vlm.model.save_pretrained(folder)
    name = str(folder)
    if form == "relative":
        monkeypatch.chdir(tmp_path)
        name = "./a"
    elif form == "trailing slash":
        name += "/"
    elif form == "link":
        (tmp_path / "link").symlink_to(folder)
        name = str(tmp_path / "link")
    elif form == "Path":
        name = folder
    again = interp.load_model("tiny", adapter=name)
    np.testing.assert_allclose(raw_logits(again, sample, [50, 55]), expected, atol=1e-4)


def test_an_adapter_of_nan_is_refused(own, sample):
    """An adapter whose training went wrong: NaN in lora_B."""
    vlm = adapted(own, lora())
    with torch.no_grad():
        for name, parameter in vlm.model.named_parameters():
            if "layers.3" in name and "lora_B" in name:
                parameter.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        interp.extract.ledger(vlm, sample, **TWO)
