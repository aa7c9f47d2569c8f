"""Planted circuits give their path-class shares to six digits (METHODS.md 6, oracle 4)."""

import numpy as np
import pytest

import interp
from interp.model.vlm import image_embeddings
from tests.support import planted
from tests.support.odd_models import batch


@pytest.fixture(params=list(planted.CIRCUITS))
def case(request, processor):
    """Name, model, batch, last row and the reference with its content's sign flipped."""
    model, inputs = planted.make(request.param, processor), batch(processor)
    flipped = image_embeddings(model, inputs).clone()
    flipped[:, planted.B] *= -1
    asked = {"positions": [inputs["input_ids"].shape[1] - 2], "targets": [40]}
    return request.param, model, inputs, asked | {"references": {"flipped": flipped}}


def test_shares_are_those_that_were_planted(case):
    name, model, inputs, asked = case
    ds = interp.extract.shapley(model, inputs, **asked).squeeze()
    assert float(np.abs(ds.total.sel(norm="live"))) > 0.01
    for norm in ("live", "frozen"):
        one = ds.sel(norm=norm)
        np.testing.assert_allclose(one.shapley / one.total, planted.SHARES[name], atol=1e-6)
    np.testing.assert_allclose(ds.pair_interaction, 0, atol=1e-6)


def test_node_effects_name_the_path(case):
    name, model, inputs, asked = case
    fx = interp.extract.node_effects(model, inputs, **asked).squeeze()
    share = fx.effect / fx.total
    if name == "routing":  # more attention to the text makes the row longer: the norm takes part
        np.testing.assert_allclose(share.sel(path="norm") + share.sel(path=name), 1, atol=1e-6)
    else:
        np.testing.assert_allclose(share.sel(path=planted.NODE_PATH[name]), 1, atol=1e-6)
    if name == "two_hop":
        by_role = fx.mediated_by_role / fx.total
        np.testing.assert_allclose(by_role.sel(role="text"), 1, atol=1e-6)


def test_edge_effects_see_values_alone(case):
    name, model, inputs, asked = case
    del asked["references"]
    fx = interp.extract.effects(model, inputs, **asked).squeeze()
    np.testing.assert_allclose(fx.total, fx.effect.sum(), atol=1e-9)
    # What is cut off makes the row shorter, so the norm takes part wherever something was read.
    others = fx.effect.drop_sel(path="norm")
    if name in ("routing", "two_hop"):
        np.testing.assert_allclose(others, 0, atol=1e-9)
    else:
        written = others.sel(path=name)
        np.testing.assert_allclose(others.sum(), written, atol=1e-9)
        assert float(np.abs(written)) > 0.01
    if name == "routing":
        np.testing.assert_allclose(fx.total, 0, atol=1e-9)
