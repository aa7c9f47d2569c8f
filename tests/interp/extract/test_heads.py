"""Heads and alternatives: against the slow reference, the ledger and the model's own forward."""

import numpy as np
import pytest
import torch

import interp
from tests.support import odd_models, reference
from tests.support.odd_models import batch

PADDING = 3


@pytest.fixture
def case(odd_model, processor):
    """Model, left-padded batch, and two of its last rows."""
    inputs = batch(processor, padding=PADDING)
    last = inputs["input_ids"].shape[1] - 1
    return odd_model, inputs, {"positions": [last - 4, last - 1], "targets": [5, 40]}


def test_heads_write_and_look_as_the_slow_reference_says(case):
    model, inputs, asked = case
    ds = interp.extract.heads(model, inputs, n=3, **asked)
    clean = reference.Clean(model, odd_models.unpadded(model, inputs, PADDING))
    is_visual = (ds["image"].values >= 0)[PADDING:]
    for k, (row, target) in enumerate(zip(*asked.values(), strict=True)):
        direct = reference.ledger(clean, row - PADDING, target, "centered", None)[0].detach()
        direct = direct.numpy()  # (layer, head, source)
        scale = np.abs(direct).sum()
        one = ds.isel(target=k)
        np.testing.assert_allclose(one["head_direct"], direct.sum(-1), atol=1e-6 * scale)
        np.testing.assert_allclose(
            one["head_image"], direct[..., is_visual].sum(-1), atol=1e-6 * scale
        )
        mass = np.abs(direct[..., is_visual]).sum(-1).ravel()
        assert set(one["top_layer"].values * direct.shape[1] + one["top_head"].values) == set(
            np.argsort(-mass)[:3].tolist()
        )
        for rank in range(3):
            layer, head = int(one["top_layer"][rank]), int(one["top_head"][rank])
            own = one.isel(rank=rank, source=slice(PADDING, None))
            np.testing.assert_allclose(own["top_direct"], direct[layer, head], atol=1e-6 * scale)
            # All heads of the slow forward look along the row; what a row cannot see has no weight.
            attention = clean.attentions[layer][0, head, row - PADDING].detach()
            np.testing.assert_allclose(own["top_attention"], attention, atol=1e-6)
    np.testing.assert_allclose(ds["top_attention"].sum("source"), 1, atol=1e-6)
    assert (ds["top_attention"].isel(source=slice(PADDING)) == 0).all()


def test_all_heads_are_the_whole_ledger(tiny):
    sample = interp.load_samples("digits", split="test", limit=1)[0]
    ledger = interp.extract.ledger(tiny, sample)["direct"]
    ds = interp.extract.heads(tiny, sample, n=1000)
    assert ds.sizes["rank"] == ledger.sizes["layer"] * ledger.sizes["head"]
    spread = np.zeros(ledger.shape, dtype=np.float32)
    k = np.arange(ds.sizes["target"])[:, None]
    spread[k, ds["top_layer"].values, ds["top_head"].values] = ds["top_direct"].values
    np.testing.assert_array_equal(spread, ledger.values)


def test_alternatives_are_the_models_own_likeliest_tokens(case):
    model, inputs, asked = case
    ds = interp.extract.alternatives(model, inputs, n=4, **asked)
    with torch.no_grad():
        logits = model(**inputs).logits[0, asked["positions"]]
    expected = logits.double().log_softmax(-1)
    values, ids = expected.sort(dim=-1, descending=True)
    assert ds["likely_token_id"].values.tolist() == ids[:, :4].tolist()
    np.testing.assert_allclose(ds["likely_log_probability"], values[:, :4], atol=1e-6)
    own = expected[torch.arange(2), torch.tensor(asked["targets"])]
    np.testing.assert_allclose(ds["log_probability"], own, atol=1e-6)
    assert "likely_token" not in ds  # nobody knows how a bare model's tokens are written


def test_they_are_spelled_with_a_vlm(tiny):
    sample = interp.load_samples("digits", split="test", limit=1)[0]
    ds = interp.extract.alternatives(tiny, sample, n=3)
    ledger = interp.extract.ledger(tiny, sample, detail="summary")
    np.testing.assert_allclose(ds["log_probability"], ledger["log_probability"], atol=1e-6)
    decode = tiny.processor.tokenizer.decode
    for word, token in zip(
        ds["likely_token"].values.ravel(), ds["likely_token_id"].values.ravel(), strict=True
    ):
        assert word == decode([int(token)])


@pytest.mark.parametrize("call", ["heads", "alternatives"])
@pytest.mark.parametrize("n", [0, -1, 1.5, True, None])
def test_a_number_that_is_none_is_refused(call, n, tiny):
    sample = interp.load_samples("digits", split="test", limit=1)[0]
    with pytest.raises(ValueError, match="expected n >= 1"):
        getattr(interp.extract, call)(tiny, sample, n=n)
