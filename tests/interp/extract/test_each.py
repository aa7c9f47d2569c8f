"""Many samples in padded batches: the same numbers as one at a time, within a budget of memory."""

from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
import xarray as xr

import interp
from interp.capture.memory import Load, needed
from interp.capture.prefill import prefills
from interp.model import families
from tests.support import odd_models

each = import_module("interp.extract.each")  # the package's attribute is the function
REST = ("remainder", "replay_drift", "log_probability", "total", "completeness_error")


@pytest.fixture(scope="module")
def samples():
    """Scenes on square and non-square canvases, with and without thinking and boxes."""
    found = interp.load_samples("digits", split="test", limit=6)
    assert len({one.image.size for one in found}) > 1
    return [replace(found[0], thinking=None), *found[1:5], replace(found[5], boxes=None)]


def assert_same(one: xr.Dataset, other: xr.Dataset, bound: float):
    """Equal in labels; in every number relative to the largest of its variable."""
    assert one.sizes == other.sizes
    assert set(one.variables) == set(other.variables)
    assert one.attrs == other.attrs
    logits = float(np.abs(other["logit"]).max()) if "logit" in other else 1.0
    for name in one.variables:
        assert one[name].dims == other[name].dims
        if one[name].dtype.kind != "f":
            assert (one[name].values == other[name].values).all(), name
            continue
        # What is left over, and the norm's share of an effect, are differences of logits.
        is_rest = name in REST
        scale = max(logits * is_rest, float(np.abs(other[name]).max()))
        assert (one[name].isnull() == other[name].isnull()).all(), name  # where nothing is defined
        assert float(np.abs(one[name] - other[name].values).max()) <= bound * scale, name


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ledger", {}),
        ("ledger", {"detail": "tokens", "gauge": "contrast", "foils": "runner-up"}),
        ("effects", {}),
        ("effects", {"mode": "mean"}),
        ("effects", {"mode": "mask", "gauge": "raw"}),
        ("first_order", {"n_nodes": 2, "objectives": ("total", "ffn", "attention")}),
    ],
)
def test_a_batch_equals_one_at_a_time(samples, name, options, attention):
    vlm = interp.load_model("tiny", attn_implementation=attention)
    together = list(interp.extract.each(name, vlm, samples, **options))
    alone = [getattr(interp.extract, name)(vlm, sample, **options) for sample in samples]
    assert len({one.sizes["target"] for one in alone}) > 1
    for one, other in zip(together, alone, strict=True):
        assert_same(one, other, bound=1e-5)


def test_batches_of_random_models_equal_one_at_a_time(odd_model, processor, samples):
    vlm = odd_models.vlm(odd_model, processor)
    for name in ("ledger", "effects"):
        alone = [getattr(interp.extract, name)(vlm, sample) for sample in samples]
        for one, other in zip(interp.extract.each(name, vlm, samples), alone, strict=True):
            assert_same(one, other, bound=1e-6)


@pytest.mark.parametrize("name", ["ledger", "effects", "first_order"])
def test_batches_of_a_bare_model_equal_one_at_a_time(odd_model, processor, name):
    made = [odd_models.batch(processor, index, padding) for index, padding in ((0, 0), (3, 2))]
    lengths = [batch["input_ids"].shape[1] for batch in made]
    asked = [{"positions": [n - 5, n - 2]} for n in lengths]
    alone = [
        getattr(interp.extract, name)(odd_model, batch, **own)
        for batch, own in zip(made, asked, strict=True)
    ]
    together = interp.extract.each(name, odd_model, zip(made, asked, strict=True))
    assert lengths[0] != lengths[1]
    for one, other in zip(together, alone, strict=True):
        assert_same(one, other, bound=1e-6)


def test_a_bare_models_batch_that_is_too_large_is_refused(odd_model, processor):
    batch = odd_models.batch(processor)
    with pytest.raises(ValueError, match="a batch: expected a sample that needs at most"):
        list(interp.extract.each("ledger", odd_model, [(batch, {"positions": [9]})], max_memory=1))
    with pytest.raises(ValueError, match="a batch: expected options of a sample's own"):
        list(interp.extract.each("ledger", odd_model, [(batch, {"gauge": "raw"})]))


@pytest.mark.parametrize(
    "options",
    [
        {"kinds": ("direct", "bottleneck", "two_hop", "effect"), "n_nodes": 2},
        {"kinds": ("bottleneck",), "variant": "release", "only": "answer"},
        {"kinds": ("direct", "edge"), "only": "answer"},
    ],
)
def test_maps_of_a_batch_equal_one_at_a_time(samples, options):
    vlm = interp.load_model("tiny")
    thinking = samples[1:]
    together = list(interp.extract.each("maps", vlm, thinking, **options))
    for one, sample in zip(together, thinking, strict=True):
        other = interp.extract.maps(vlm, sample, **options)
        assert one.attrs == other.attrs
        assert (one.is_defined == other.is_defined).all()
        for kind in options["kinds"]:
            mine, theirs = one["map"].sel(kind=kind), other["map"].sel(kind=kind)
            assert float(np.abs(mine - theirs).max()) <= 1e-5 * float(np.abs(theirs).max()), kind
    found = []
    with pytest.raises(ValueError, match="a text with a thinking span"):
        found.extend(interp.extract.each("maps", vlm, [samples[1], samples[0]]))
    assert [one.attrs["sample"] for one in found] == [samples[1].id]
    own = [(samples[1], {"only": [0]}), (samples[2], {"only": "answer"})]
    sizes = [one.sizes["target"] for one in interp.extract.each("maps", vlm, own)]
    assert sizes == [1, interp.extract.maps(vlm, samples[2], only="answer").sizes["target"]]


def test_options_of_a_samples_own(samples):
    vlm = interp.load_model("tiny")
    n_tokens = [interp.extract.residual(vlm, one).sizes["position"] for one in samples[:2]]
    own = [{"positions": [n - 3, n - 4]} for n in n_tokens]
    found = list(interp.extract.each("ledger", vlm, zip(samples[:2], own, strict=True)))
    for one, asked in zip(found, own, strict=True):
        assert one.target_position.values.tolist() == asked["positions"]
    with pytest.raises(ValueError, match="options of a sample's own out of"):
        list(interp.extract.each("effects", vlm, [(samples[0], {"mode": "mask"})]))


def test_extractions_without_batches_come_in_order_too(samples):
    vlm = interp.load_model("tiny")
    found = list(interp.extract.each("origins", vlm, samples[:2]))
    assert [one.attrs["sample"] for one in found] == [one.id for one in samples[:2]]
    xr.testing.assert_identical(found[1], interp.extract.origins(vlm, samples[1]))


def test_the_budget_picks_the_batches(samples, monkeypatch):
    vlm = interp.load_model("tiny")
    sizes = []

    def counting(model, sequences, positions):
        sizes.append(len(sequences))
        return prefills(model, sequences, positions)

    monkeypatch.setattr(each, "prefills", counting)
    parts = families.parts(vlm.model)
    loads = [
        Load(one.sizes["source"], one.sizes["target"])
        for one in interp.extract.each("ledger", vlm, samples, detail="tokens")
    ]
    largest = max(loads, key=lambda one: needed(parts, [one], 4))

    def n_batches(budget: int) -> int:
        sizes.clear()
        list(interp.extract.each("ledger", vlm, samples, detail="tokens", max_memory=budget))
        assert sum(sizes) == len(samples)
        return len(sizes)

    assert n_batches(needed(parts, [largest], 4)) >= 5
    assert 1 < n_batches(needed(parts, [largest] * 3, 4)) < 5
    assert n_batches(needed(parts, [largest] * 10, 4)) == 1
    with pytest.raises(ValueError, match=r"at most max_memory=1000 bytes, got \d+ for \d+ tokens"):
        next(interp.extract.each("ledger", vlm, samples, max_memory=1000))
    with pytest.raises(ValueError, match="an extraction of"):
        interp.extract.each("ledgers", vlm, samples)
    with pytest.raises(ValueError, match="a detail of"):
        interp.extract.each("ledger", vlm, samples, detail="lots")


def test_a_sample_too_large_at_once_goes_by_itself_in_chunks(samples, monkeypatch):
    vlm = interp.load_model("tiny")
    parts = families.parts(vlm.model)
    expected = [interp.extract.effects(vlm, one) for one in samples[1:3]]
    n_tokens = max(one.sizes["source"] for one in interp.extract.each("ledger", vlm, samples[1:3]))
    n_targets = max(one.sizes["target"] for one in expected)
    budget = needed(parts, [Load(n_tokens, n_targets, n_variants=1)], 4)
    monkeypatch.setattr(each, "REPLAY_BYTES", 0)
    monkeypatch.setattr(each, "prefills", None)  # no batch is made
    found = list(interp.extract.each("effects", vlm, samples[1:3], max_memory=budget))
    for one, other in zip(found, expected, strict=True):
        xr.testing.assert_identical(one, other)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"positions": [10_000]}, "positions"),  # noticed before a batch is made
        ({"foils": [1]}, "one foil per target"),  # and in it
    ],
)
def test_what_lies_before_a_bad_sample_is_not_lost(samples, own, message):
    vlm = interp.load_model("tiny")
    pairs = [(samples[1], {}), (samples[2], {}), (samples[3], own), (samples[4], {})]
    found = []
    options = {"gauge": "contrast", "foils": "runner-up"}
    with pytest.raises(ValueError, match=message):
        found.extend(interp.extract.each("ledger", vlm, pairs, **options))
    assert [one.attrs["sample"] for one in found] == [sample.id for sample, _ in pairs[:2]]


@pytest.mark.parametrize("shape", ["two_to_one", "three_to_one"])
def test_positions_of_ones_own_on_three_axes_stay_with_their_sequence(shape, processor):
    """Padded or not, each sequence keeps the positions that its batch came with."""
    model = odd_models.make(shape, processor)
    made = []
    for index, padding, gap in ((0, 0, 11), (0, 0, 0), (3, 2, 5)):
        batch = odd_models.batch(processor, index, padding)
        n_tokens = batch["input_ids"].shape[1]
        counted = torch.arange(n_tokens) + gap * (torch.arange(n_tokens) > n_tokens // 2)
        made.append(batch | {"position_ids": counted.expand(3, 1, n_tokens).clone()})
    asked = [{"positions": [one["input_ids"].shape[1] - 3]} for one in made]
    pairs = list(zip(made, asked, strict=True))
    found = list(interp.extract.each("ledger", model, pairs))
    for one, (batch, own) in zip(found, pairs, strict=True):
        alone = interp.extract.ledger(model, batch, **own)
        np.testing.assert_allclose(one.direct, alone.direct, atol=1e-7)
    assert abs(float(found[0].logit[0] - found[1].logit[0])) > 1e-4
    rows = [torch.tensor(own["positions"]) for own in asked]
    prefills(model, made, rows)  # in one forward
    with pytest.raises(ValueError, match="expected position_ids in each batch or in none"):
        prefills(model, [made[0], odd_models.batch(processor)], rows[:2])
