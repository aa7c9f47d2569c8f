"""Ledger and edge effects against the slow reference, and against their own sums (METHODS.md 6)."""

import numpy as np
import pytest
import torch

import interp
from tests.support import odd_models, reference
from tests.support.odd_models import batch, make


def relative(error, dataset):
    return float((np.abs(error) / dataset.magnitude).max())


PADDING = 3


@pytest.fixture
def case(odd_model, processor):
    """Model, left-padded batch and the last rows, one of them twice with two targets."""
    inputs = batch(processor, padding=PADDING)
    last = inputs["input_ids"].shape[1] - 1
    positions = [last - 4, last - 1, last - 1]
    targets = [5, 40, 41]
    return odd_model, inputs, positions, targets


def slow(model, inputs):
    """The eager reference, which sees the sequence without its padding."""
    return reference.Clean(model, odd_models.unpadded(model, inputs, PADDING))


@pytest.mark.parametrize("gauge", ["raw", "centered", "contrast"])
def test_ledger_equals_the_slow_reference(case, gauge):
    model, inputs, positions, targets = case
    foils = [7, 8, 9] if gauge == "contrast" else None
    ds = interp.extract.ledger(
        model, inputs, positions=positions, targets=targets, gauge=gauge, foils=foils
    )
    assert ds.direct.dims == ("target", "layer", "head", "source")
    clean = slow(model, inputs)
    for k, (row, target) in enumerate(zip(positions, targets, strict=True)):
        foil = foils[k] if foils else None
        found = reference.ledger(clean, row - PADDING, target, gauge, foil)
        direct, bias, ffn, embed, logit = found
        one = ds.isel(target=k, source=slice(PADDING, None))
        scale = float(one.magnitude)
        np.testing.assert_allclose(one.direct, direct.detach(), atol=1e-6 * scale)
        np.testing.assert_allclose(one.value_bias, bias.detach(), atol=1e-6 * scale)
        np.testing.assert_allclose(one.ffn, ffn.detach(), atol=1e-6 * scale)
        np.testing.assert_allclose(one.embed, embed.detach(), atol=1e-6 * scale)
        np.testing.assert_allclose(one.logit, logit.detach(), atol=1e-6 * scale)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
@pytest.mark.parametrize("shape", list(odd_models.SHAPES))
def test_ledger_sums_to_the_models_logit(processor, shape, dtype, bound):
    model = make(shape, processor, dtype)
    inputs = batch(processor, padding=2, dtype=dtype)
    n_tokens = inputs["input_ids"].shape[1]
    ds = interp.extract.ledger(model, inputs, positions=range(n_tokens - 8, n_tokens - 1))
    parts = ds.embed + ds.ffn.sum("layer") + ds.value_bias.sum(("layer", "head"))
    parts = parts + ds.direct.sum(("layer", "head", "source"))
    assert relative(ds.logit - parts, ds) < bound
    assert relative(ds.remainder, ds) < bound
    assert relative(ds.replay_drift, ds) < bound
    with torch.no_grad():
        logits = model(**inputs).logits[0].double()
    rows, ids = ds.target_position.values, ds.target_token_id.values
    expected = logits[rows, ids] - logits[rows].mean(dim=-1)
    np.testing.assert_allclose(ds.logit, expected, atol=bound * float(ds.magnitude.max()))


def test_bfloat16_stays_within_its_bound(processor):
    model = make("two_to_one", processor, torch.bfloat16)
    inputs = batch(processor, dtype=torch.bfloat16)
    n_tokens = inputs["input_ids"].shape[1]
    ds = interp.extract.ledger(model, inputs, positions=range(n_tokens - 8, n_tokens - 1))
    fx = interp.extract.effects(model, inputs, positions=range(n_tokens - 8, n_tokens - 1))
    assert ds.attrs["dtype"] == "bfloat16"
    stream = interp.extract.residual(model, inputs, positions=[9]).residual
    assert stream.dtype == np.float32
    written = stream.sel(component="resid_pre") + stream.sel(component="attn_out")
    gap = np.abs(written - stream.sel(component="resid_mid")).max() / np.abs(written).max()
    assert float(gap) < 2e-2
    assert relative(ds.remainder, ds) < 5e-2
    assert relative(fx.total - fx.effect.sum("path"), ds) < 5e-2


@pytest.mark.parametrize(
    ("gauge", "mode"),
    [
        ("raw", "zero"),
        ("centered", "zero"),
        ("contrast", "zero"),
        ("centered", "mean"),
        ("contrast", "mask"),
    ],
)
def test_effects_equal_the_slow_reference(case, gauge, mode):
    model, inputs, positions, targets = case
    image = (inputs["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0].tolist()
    sources = {"image": image, "some": image[2:4]}
    if mode != "mean":
        sources["mixed"] = [*image[:3], image[-1] + 2, positions[1]]
    foils = [7, 8, 9] if gauge == "contrast" else None
    asked = {"positions": positions, "targets": targets, "gauge": gauge, "foils": foils}
    fx = interp.extract.effects(model, inputs, sources=sources, mode=mode, **asked)
    ds = interp.extract.ledger(model, inputs, **asked)
    assert fx.effect.dims == ("target", "source_set", "path")
    clean = slow(model, inputs)
    averaged = [r - PADDING for r in image]
    for k, (row, target) in enumerate(zip(positions, targets, strict=True)):
        foil = foils[k] if foils else None
        for name, rows in sources.items():
            cut = [r - PADDING for r in rows]
            found = reference.edge_effect(
                clean, row - PADDING, target, cut, gauge, foil, mode, averaged
            )
            total, parts = float(found[0].detach()), found[1]
            one = fx.isel(target=k).sel(source_set=name)
            scale = float(ds.magnitude[k])
            assert abs(total) > 1e-4 * scale
            np.testing.assert_allclose(one.total, total, atol=2e-6 * scale)
            for path, value in parts.items():
                expected = 0 if path == "value_bias" and mode == "mean" else value.detach()
                np.testing.assert_allclose(
                    one.effect.sel(path=path), expected, atol=2e-6 * scale, err_msg=path
                )


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
@pytest.mark.parametrize("shape", list(odd_models.SHAPES))
def test_effects_sum_to_the_total(processor, shape, dtype, bound):
    model = make(shape, processor, dtype)
    inputs = batch(processor, padding=1, dtype=dtype)
    n_tokens = inputs["input_ids"].shape[1]
    asked = {"positions": range(n_tokens - 8, n_tokens - 1)}
    ds = interp.extract.ledger(model, inputs, **asked)
    for mode in ("mean", "mask", "zero"):
        fx = interp.extract.effects(model, inputs, mode=mode, **asked)
        assert fx.attrs["mode"] == mode
        assert relative(fx.total - fx.effect.sum("path"), ds) < bound
    by_layer = fx.effect_by_layer.sum("layer").values
    np.testing.assert_allclose(
        by_layer, fx.effect[..., :-1], atol=bound * float(ds.magnitude.max())
    )
    image = ds.direct.where(ds.source_role == "image", 0).sum(("layer", "head", "source"))
    direct = fx.effect.sel(path="direct", source_set="image")
    np.testing.assert_allclose(direct, image, atol=bound * float(ds.magnitude.max()))


def test_what_a_row_cannot_see_is_exactly_zero(case):
    model, inputs, positions, targets = case
    ds = interp.extract.ledger(model, inputs, positions=positions, targets=targets)
    hidden = (ds.source > ds.target_position) | (ds.source_role == "padding")
    assert bool(hidden.any())
    assert (ds.direct.where(hidden, 0) == 0).all()
    assert np.isfinite(ds.direct).all()


def test_the_effect_of_a_set_behind_the_row_is_not_defined(case):
    """Zero would pull down a mean over targets or samples that lack the set."""
    model, inputs, positions, _ = case
    later = inputs["input_ids"].shape[1] - 1
    sets = {"later": [later], "before": [positions[0] - 1]}
    fx = interp.extract.effects(model, inputs, positions=positions[:1], sources=sets)
    assert fx.is_defined.values.tolist() == [[False, True]]
    for name in ("effect", "effect_by_layer", "total"):
        assert fx[name].sel(source_set="later").isnull().all()
        assert fx[name].sel(source_set="before").notnull().all()
        np.testing.assert_array_equal(
            fx[name].mean("source_set"), fx[name].sel(source_set="before")
        )


def test_padding_changes_nothing(odd_model, processor):
    plain, padded = batch(processor), batch(processor, padding=5)
    n_tokens = plain["input_ids"].shape[1]
    rows = range(n_tokens - 6, n_tokens - 1)
    a = interp.extract.ledger(odd_model, plain, positions=rows)
    b = interp.extract.ledger(odd_model, padded, positions=[r + 5 for r in rows])
    np.testing.assert_allclose(a.direct, b.direct[..., 5:], atol=1e-6)
    np.testing.assert_allclose(a.logit, b.logit, atol=1e-5)
    assert float(np.abs(b.direct[..., :5]).max()) == 0


def test_sdpa_equals_eager(processor):
    model = make("seven_to_one", processor, torch.float32)
    inputs = batch(processor, dtype=torch.float32)
    rows = range(50, 56)
    results = {}
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        results[implementation] = interp.extract.ledger(model, inputs, positions=rows)
        assert results[implementation].attrs["attn_implementation"] == implementation
    np.testing.assert_allclose(results["sdpa"].direct, results["eager"].direct, atol=1e-5)


def test_a_constant_in_the_output_embedding_is_invisible_when_centered(processor):
    model = make("seven_to_one", processor)
    inputs = batch(processor)
    before = interp.extract.ledger(model, inputs, positions=[50, 55])
    raw = interp.extract.ledger(model, inputs, positions=[50, 55], gauge="raw")
    with torch.no_grad():
        model.lm_head.weight.add_(torch.linspace(-1, 2, model.lm_head.in_features))
    after = interp.extract.ledger(model, inputs, positions=[50, 55])
    changed = interp.extract.ledger(model, inputs, positions=[50, 55], gauge="raw")
    np.testing.assert_allclose(before.direct, after.direct, atol=1e-7)
    np.testing.assert_allclose(before.logit, after.logit, atol=1e-5)
    assert float(np.abs(raw.direct - changed.direct).max()) > 1e-3


def test_spread_value_bias_keeps_the_sum(case):
    model, inputs, positions, targets = case
    asked = {"positions": positions, "targets": targets}
    apart = interp.extract.ledger(model, inputs, **asked)
    spread = interp.extract.ledger(model, inputs, include_value_bias=True, **asked)
    assert float(np.abs(spread.value_bias).max()) == 0
    moved = (spread.direct - apart.direct).sum("source")
    np.testing.assert_allclose(moved, apart.value_bias, atol=1e-8)


@pytest.mark.parametrize("detail", ["tokens", "summary"])
def test_details_are_sums_of_the_full_ledger(case, detail):
    model, inputs, positions, targets = case
    full = interp.extract.ledger(model, inputs, positions=positions, targets=targets)
    less = interp.extract.ledger(model, inputs, positions=positions, targets=targets, detail=detail)
    for role in ("image", "text", "padding"):
        expected = full.direct.where(full.source_role == role, 0).sum(("head", "source"))
        np.testing.assert_allclose(less.direct_by_layer.sel(role=role), expected, atol=1e-10)
    if detail == "tokens":
        np.testing.assert_allclose(less.direct, full.direct.sum(("layer", "head")), atol=1e-10)
    else:
        assert "source" not in less.dims


def test_residual_stream_adds_up_and_ends_in_the_norm(case):
    model, inputs, positions, _ = case
    ds = interp.extract.residual(model, inputs, positions=positions)
    stream = {name: ds.residual.sel(component=name).values for name in ds.component.values}
    np.testing.assert_allclose(
        stream["resid_pre"] + stream["attn_out"], stream["resid_mid"], atol=1e-12
    )
    np.testing.assert_allclose(
        stream["resid_mid"] + stream["ffn_out"], stream["resid_post"], atol=1e-12
    )
    added = stream.get("injected", np.zeros_like(stream["resid_post"]))
    np.testing.assert_array_equal((stream["resid_post"] + added)[:-1], stream["resid_pre"][1:])
    assert ("injected" in stream) == bool(interp.model.families.parts(model).n_injected)
    clean = slow(model, inputs)
    expected = torch.stack([clean.final(row - PADDING) for row in positions]).detach()
    scale = float(expected.abs().max())  # the two attentions differ by their float32 softmax
    np.testing.assert_allclose(stream["resid_post"][-1], expected, rtol=0, atol=1e-6 * scale)


def test_two_images_and_right_padding_are_exact_too(processor):
    from PIL import Image

    model = make("two_to_one", processor)
    images = [Image.new("RGB", (84, 56), "red"), odd_models.sample().image]
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "which?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    inputs = dict(processor(images=images, text=[text], return_tensors="pt"))
    inputs["pixel_values"] = inputs["pixel_values"].double()
    n_tokens = inputs["input_ids"].shape[1]
    plain = interp.extract.ledger(model, inputs, positions=[n_tokens - 3])
    assert set(plain.image.values) == {-1, 0, 1}
    assert relative(plain.remainder, plain) < 1e-6
    with pytest.raises(ValueError, match="one image, got 2"):
        interp.maps.token_map(plain, 0)
    for name, fill in (("input_ids", 0), ("attention_mask", 0), ("mm_token_type_ids", 0)):
        pad = torch.full((1, 4), fill, dtype=inputs[name].dtype)
        inputs[name] = torch.cat([inputs[name], pad], dim=1)
    padded = interp.extract.ledger(model, inputs, positions=[n_tokens - 3])
    np.testing.assert_allclose(padded.direct[..., :n_tokens], plain.direct, atol=1e-8)
    with pytest.raises(ValueError, match="a token after position"):
        interp.extract.ledger(model, inputs, positions=[n_tokens - 1])


def test_a_callers_inference_mode_and_autocast_change_nothing(processor):
    model = make("two_to_one", processor, torch.float32)
    inputs = batch(processor, dtype=torch.float32)
    expected = interp.extract.effects(model, inputs, positions=[50, 55])
    with torch.inference_mode():
        got = interp.extract.effects(model, inputs, positions=[50, 55])
    np.testing.assert_array_equal(got.effect, expected.effect)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = interp.extract.effects(model, inputs, positions=[50, 55])
    np.testing.assert_array_equal(got.effect, expected.effect)
