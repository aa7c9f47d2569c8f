"""First-order maps and exact patch effects (METHODS.md 3.4, 3.5)."""

from importlib import import_module

import numpy as np
import pytest
import torch

import interp
from tests.support import reference
from tests.support.odd_models import batch, make, random_references


@pytest.fixture
def case(odd_model, processor):
    inputs = batch(processor, padding=2)
    n_tokens = inputs["input_ids"].shape[1]
    asked = {"positions": [n_tokens - 6, n_tokens - 3, n_tokens - 3], "targets": [5, 40, 41]}
    scale = interp.extract.ledger(odd_model, inputs, **asked).magnitude
    return odd_model, inputs, asked, scale


def test_integrated_maps_sum_to_the_joint_cut(case):
    model, inputs, asked, scale = case
    cut = interp.extract.effects(model, inputs, **asked).total.sel(source_set="image")
    errors = []
    for n_nodes in (0, 2, 16):
        ds = interp.extract.first_order(model, inputs, n_nodes=n_nodes, **asked)
        assert ds.first_order.dims == ("target", "layer", "source", "objective")
        summed = ds.first_order.sel(objective="total").sum(("layer", "source"))
        summed = summed + ds.first_order_bias.sel(objective="total")
        np.testing.assert_allclose(ds.total, cut, atol=1e-6 * float(scale.max()))
        np.testing.assert_allclose(summed + ds.completeness_error, ds.total, atol=1e-9)
        outside = ds.first_order.where(ds.source_role != "image", 0)
        assert float(np.abs(outside).max()) == 0
        errors.append(float(np.abs(ds.completeness_error / scale).max()))
    assert errors[2] < 1e-3 < errors[0]
    assert errors[2] < errors[1] < errors[0]


def test_parts_under_the_frozen_norm_are_additive(case):
    """Σ u·F and Σ u·A lose together what u·h loses, to the quadrature's error."""
    model, inputs, asked, scale = case
    fx = interp.extract.effects(model, inputs, **asked).sel(source_set="image")
    ds = interp.extract.first_order(
        model, inputs, n_nodes=32, objectives=("total", "ffn", "attention"), **asked
    )
    summed = ds.first_order.sum(("layer", "source")) + ds.first_order_bias
    ffn, norm = fx.effect.sel(path="ffn"), fx.effect.sel(path="norm")
    limit = 2e-4 * float(scale.max())
    np.testing.assert_allclose(summed.sel(objective="ffn"), ffn, atol=limit)
    rest = fx.total - ffn - norm
    np.testing.assert_allclose(summed.sel(objective="attention"), rest, atol=limit)


def test_one_backward_for_all_rows_equals_one_per_target(case):
    model, inputs, asked, _ = case
    together = interp.extract.first_order(model, inputs, n_nodes=4, **asked)
    for k in range(len(asked["positions"])):
        one = {name: values[k : k + 1] for name, values in asked.items()}
        alone = interp.extract.first_order(model, inputs, n_nodes=4, **one)
        np.testing.assert_allclose(
            together.first_order.isel(target=[k]), alone.first_order, atol=1e-9
        )


def test_plain_gradients_equal_finite_differences(odd_model, processor):
    """τ of the clean run is the slope of f when one layer's write of one token is scaled."""
    inputs = batch(processor)
    row, target, layer = inputs["input_ids"].shape[1] - 3, 5, 1
    ds = interp.extract.first_order(odd_model, inputs, positions=[row], targets=[target], n_nodes=0)
    of_layer = ds.first_order.sel(objective="total", layer=layer)
    p = int(np.nanargmax(np.abs(of_layer.values.ravel())))
    clean = reference.Clean(odd_model, inputs)
    g = clean.gauge_row(target, "centered")

    def value(factor):
        """f with the value (without bias) of token p scaled in one layer, row computed again."""
        kept = clean.value_at

        def scaled(number, head, at, normed):
            v, b = kept(number, head, at, normed)
            return (v * factor if (number, at) == (layer, p) else v), b

        clean.value_at = scaled
        _, h = reference.play_row.__wrapped__(clean, row)  # anew
        clean.value_at = kept
        return float((clean.readout(h, g) @ h).detach())

    # A step large enough for the library's float32 norms and softmax.
    slope = (value(1.03) - value(0.97)) / 0.06
    got = ds.first_order.sel(objective="total", layer=layer, source=p).item()
    assert abs(slope) > 1e-3
    assert got == pytest.approx(slope, rel=1e-3)


@pytest.mark.parametrize("form", ["edge", "slot"])
def test_patch_effects_equal_one_replay_per_patch(case, form, monkeypatch):
    model, inputs, asked, scale = case
    refs = random_references(inputs, model)
    ds = interp.extract.patch_effects(model, inputs, form=form, reference=refs["one"], **asked)
    assert ds.effect.dims == ("target", "source", "path")
    limit = 1e-6 * float(scale.max())
    summed = ds.effect.sum("path", skipna=False)
    np.testing.assert_allclose(summed, ds.total, atol=limit)
    assert (ds.total.notnull() == ds.is_defined).all()
    np.testing.assert_allclose(ds.total.sum("source") + ds.patch_interaction, ds.joint, atol=limit)
    image = ds.source.values[ds.source_role.values == "image"].tolist()
    if form == "edge":
        single = interp.extract.effects(
            model, inputs, sources={str(p): [p] for p in image[:3]} | {"all": image}, **asked
        )
        np.testing.assert_allclose(single.total[:, :3], ds.total.sel(source=image[:3]), atol=limit)
        np.testing.assert_allclose(
            single.effect[:, :3], ds.effect.sel(source=image[:3]), atol=limit
        )
        np.testing.assert_allclose(single.total.sel(source_set="all"), ds.joint, atol=limit)
    monkeypatch.setattr(
        import_module("interp.extract.patch_effects"), "REPLAY_BYTES", 1
    )  # chunks of two sets
    again = interp.extract.patch_effects(model, inputs, form=form, reference=refs["one"], **asked)
    np.testing.assert_allclose(again.effect, ds.effect, atol=limit)


def test_slot_effects_equal_the_slow_reference(odd_model, processor):
    inputs = batch(processor)
    row, target = inputs["input_ids"].shape[1] - 3, 5
    embeddings = random_references(inputs, odd_model)["one"]
    ds = interp.extract.patch_effects(
        odd_model, inputs, form="slot", reference=embeddings, positions=[row], targets=[target]
    )
    visual = (inputs["input_ids"][0] == odd_model.config.image_token_id).nonzero()[:, 0].tolist()
    clean = reference.Clean(odd_model, inputs)
    other = reference.Clean(odd_model, inputs, dict(zip(visual, embeddings, strict=True)))
    g = clean.gauge_row(target, "centered")
    _, h = reference.play_row(clean, row)
    for p in visual[1:3]:
        _, h2 = reference.play_row(clean, row, other=other, swapped=[p])
        total = clean.readout(h, g) @ h - clean.readout(h2, g) @ h2
        np.testing.assert_allclose(ds.total.sel(source=p), float(total.detach()), atol=1e-6)


def test_a_twins_slots_count_only_where_its_text_differs():
    vlm = interp.load_model("tiny")
    samples = interp.load_samples("digits", split="test", limit=10)
    sample = next(one for one in samples if one.id.endswith("000003"))
    refs = interp.extract.references(vlm, sample, kinds=["twin"])
    ds = interp.extract.patch_effects(vlm, sample, form="slot", reference=refs["twin"])
    nodes = interp.extract.node_effects(vlm, sample, references=refs, sources=["image"])
    expected = nodes.is_defined[:, 0, 0].values
    assert 0 < expected.sum() < len(expected)
    visual = ds.source_role.values == "image"
    assert (ds.is_defined.values == expected[:, np.newaxis] & visual).all()
    assert np.isnan(ds.effect.values[~expected]).all()
    assert np.isfinite(ds.joint.values).tolist() == expected.tolist()


def test_bad_questions_are_refused(processor):
    model, inputs = make("two_to_one", processor), batch(processor)
    cases = [
        (interp.extract.first_order, {"n_nodes": -1}, "n_nodes >= 0"),
        (interp.extract.first_order, {"source": "thinking"}, "source sets of"),
        (interp.extract.first_order, {"objectives": ("ffn",)}, "total first"),
        (interp.extract.first_order, {"objectives": ("total", "norm")}, "objectives of"),
        (interp.extract.patch_effects, {"form": "round"}, "form of"),
        (interp.extract.patch_effects, {"form": "slot"}, "expected reference="),
        (interp.extract.patch_effects, {"source": [40, 50]}, "visual rows"),
    ]
    for function, options, message in cases:
        with pytest.raises(ValueError, match=message):
            function(model, inputs, positions=[55], **options)


def test_gradients_leave_nothing_behind(processor):
    model, inputs = (
        make("two_to_one", processor, torch.float32),
        batch(processor, dtype=torch.float32),
    )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    frozen = interp.extract.first_order(model, inputs, positions=[55], n_nodes=2)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    free = interp.extract.first_order(model, inputs, positions=[55], n_nodes=2)
    np.testing.assert_allclose(frozen.first_order, free.first_order, atol=1e-6)
    assert all(p.grad is None for p in model.parameters())
