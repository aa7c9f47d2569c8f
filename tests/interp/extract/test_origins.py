"""Source depth sums to the direct terms, and knows who wrote them (METHODS.md 2.1)."""

import numpy as np
import pytest
import torch

import interp
from interp.vocabulary import ORIGINS
from tests.support import odd_models, planted, reference
from tests.support.odd_models import batch, make


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
@pytest.mark.parametrize("shape", list(odd_models.SHAPES))
def test_origins_sum_to_the_direct_terms(processor, shape, dtype, bound):
    model, inputs = make(shape, processor, dtype), batch(processor, padding=2, dtype=dtype)
    n_tokens = inputs["input_ids"].shape[1]
    asked = {"positions": range(n_tokens - 6, n_tokens - 1)}
    ds = interp.extract.origins(model, inputs, **asked)
    ledger = interp.extract.ledger(model, inputs, **asked)
    assert ds.direct_by_origin.dims == ("target", "source", "origin")
    direct = ledger.direct.sum(("layer", "head"))
    limit = bound * float(ledger.magnitude.max())
    np.testing.assert_allclose(ds.direct_by_origin.sum("origin"), direct, atol=limit)
    np.testing.assert_allclose(ds.origin_remainder, 0, atol=limit)
    layered = interp.extract.origins(model, inputs, by_layer=True, **asked)
    summed = layered.direct_by_origin.groupby("origin_kind").sum()
    for kind in ORIGINS:
        np.testing.assert_allclose(
            summed.sel(origin_kind=kind), ds.direct_by_origin.sel(origin=kind), atol=limit
        )
    levels = [name for name in ds.origin.values if name not in ORIGINS]
    assert len(levels) == interp.model.families.parts(model).n_injected
    for name in levels:
        np.testing.assert_allclose(
            layered.direct_by_origin.sel(origin=name),
            ds.direct_by_origin.sel(origin=name),
            atol=limit,
        )
    last = int(layered.origin_layer.max())
    assert float(np.abs(layered.direct_by_origin.sel(origin=f"ffn {last}")).max()) == 0


def test_origins_equal_the_slow_reference(odd_model, processor):
    """Each origin pushed through norm, W_v and W_o by name."""
    inputs = batch(processor)
    row, target = inputs["input_ids"].shape[1] - 3, 5
    ds = interp.extract.origins(odd_model, inputs, positions=[row], targets=[target])
    clean = reference.Clean(odd_model, inputs)
    u = clean.readout(clean.final(row), clean.gauge_row(target, "centered"))
    sources = [4, 17, row]
    for p in sources:
        expected = dict.fromkeys(ds.origin.values.tolist(), 0.0)
        stream = {"embed": clean.embeddings[p], "attention": 0.0, "bias": 0.0, "ffn": 0.0}
        for number, layer in enumerate(clean.layers):
            total = sum(stream.values())
            rms = torch.sqrt((total**2).mean() + clean.text.rms_norm_eps)
            written = 0.0
            for head in range(clean.text.num_attention_heads):
                weight = clean.attentions[number][0, head, row, p] * clean.scale_at(number, row)
                matrix = clean.head_matrix(number, head)
                for name, part in stream.items():
                    normed = clean.gamma(layer.input_layernorm) * part / rms
                    if isinstance(part, float):
                        continue
                    value, bias = clean.value_of(number, head, normed)
                    expected[name] = expected[name] + float(
                        (weight * (u @ matrix @ value)).detach()
                    )
                written = written + matrix @ bias
            name = "post_attention_layernorm" if clean.is_gemma else "self_attn"
            attention = clean.output(f"layers.{number}.{name}")[0, p]
            stream["attention"] = stream["attention"] + attention - written
            stream["bias"] = stream["bias"] + written
            stream["ffn"] = stream["ffn"] + clean.ffn_at(number, p)
            if f"image level {number}" in expected:
                stream[f"image level {number}"] = clean.added(number, p)
        one = ds.direct_by_origin.isel(target=0).sel(source=p)
        for name, value in expected.items():
            np.testing.assert_allclose(one.sel(origin=name), value, atol=1e-6)


@pytest.mark.parametrize(("circuit", "origin"), [("direct", "embed"), ("two_hop", "attention")])
def test_planted_circuits_have_their_origin(processor, circuit, origin):
    model, inputs = planted.make(circuit, processor), batch(processor)
    row = inputs["input_ids"].shape[1] - 2
    ds = interp.extract.origins(model, inputs, positions=[row], targets=[40])
    by_origin = ds.direct_by_origin.sum(("target", "source"))
    np.testing.assert_allclose(by_origin.sel(origin=origin) / by_origin.sum(), 1, atol=1e-6)
