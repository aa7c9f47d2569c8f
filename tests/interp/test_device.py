"""Exactness on the device named by TEST_DEVICE, in the dtypes that people use there.

Alone on a GPU: TEST_DEVICE=cuda python -m pytest tests/interp/test_device.py
"""

import copy
import os

import numpy as np
import pytest
import torch

import interp
from interp.validate import certify
from interp.vocabulary import BOUNDS
from tests.support import odd_models, reference

DEVICE = os.environ.get("TEST_DEVICE", "cpu")
DTYPES = ("float32", "bfloat16")


@pytest.fixture(params=DTYPES)
def dtype(request, monkeypatch):
    # cuDNN convolves float32 in TF32 unless told not to: the patch embedding, 1e-4 off.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return request.param


@pytest.fixture(params=odd_models.ALL)
def odd_model(request, dtype, processor):
    return odd_models.make(request.param, processor, getattr(torch, dtype)).to(DEVICE)


@pytest.fixture
def case(odd_model, processor):
    """The batch on the device, and the slow reference in float64 on the CPU, with equal weights."""
    inputs = odd_models.batch(processor, dtype=odd_model.dtype)
    exact = copy.deepcopy(odd_model).double().cpu()
    doubled = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    last = inputs["input_ids"].shape[1] - 1
    asked = {"positions": [last - 4, last - 1, last - 1], "targets": [5, 40, 41]}
    return inputs, asked, reference.Clean(exact, doubled)


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float32"], indirect=True)
def test_the_certificate_holds(odd_model, processor):
    vlm = odd_models.vlm(odd_model, processor)
    certificate = certify(vlm, [odd_models.sample(), odd_models.sample(9)], witness=False)
    assert certificate.checks.sizes["check"] > 30


def test_ledger_equals_the_slow_reference_in_float64(odd_model, dtype, case):
    inputs, asked, clean = case
    ds = interp.extract.ledger(odd_model, inputs, **asked)
    assert ds.attrs["dtype"] == dtype
    for k, (row, target) in enumerate(zip(*asked.values(), strict=True)):
        one = ds.isel(target=k)
        allowed = BOUNDS[dtype] * float(one.magnitude)
        names = ("direct", "value_bias", "ffn", "embed", "logit")
        for name, expected in zip(names, reference.ledger(clean, row, target), strict=True):
            np.testing.assert_allclose(
                one[name], expected.detach(), rtol=0, atol=allowed, err_msg=name
            )
        assert np.abs(one.direct).max() > 10 * BOUNDS["float32"] * float(one.magnitude)


def test_edge_effects_equal_the_slow_reference_in_float64(odd_model, dtype, case):
    inputs, asked, clean = case
    image = (inputs["input_ids"][0] == odd_model.config.image_token_id).nonzero()[:, 0].tolist()
    fx = interp.extract.effects(odd_model, inputs, sources={"image": image}, **asked)
    magnitude = interp.extract.ledger(odd_model, inputs, **asked).magnitude
    for k, (row, target) in enumerate(zip(*asked.values(), strict=True)):
        with torch.no_grad():
            total, parts = reference.edge_effect(clean, row, target, image)
        allowed, one = BOUNDS[dtype] * float(magnitude[k]), fx.isel(target=k, source_set=0)
        assert abs(float(one.total) - float(total)) < allowed
        for path, expected in parts.items():
            assert abs(float(one.effect.sel(path=path)) - float(expected)) < allowed, path
