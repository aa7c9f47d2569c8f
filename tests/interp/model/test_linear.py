"""A linear layer is read off its weight where its weight is all it does, and nowhere else."""

import peft
import pytest
import torch
from torch import nn

import interp
from interp.algebra import readout
from interp.capture import replay
from interp.model import families
from interp.model.linear import is_plain


def projections(model):
    layers = families.parts(model).layers
    return [module for layer in layers for module in (layer.v_proj, layer.o_proj)]


def doubled(module):
    forward = module.forward
    module.forward = lambda x: 2 * forward(x)


CHANGES = {
    "a hook": lambda module: module.register_forward_hook(lambda _m, _x, y: 2 * y),
    "a hook before it": lambda module: module.register_forward_pre_hook(lambda _m, x: (2 * x[0],)),
    "another forward": doubled,
}


def test_a_traced_projection_is_plain_still():
    """Tracing puts a forward in its place; read by its gradient it would be rounded to its dtype.

    Every readout of a bfloat16 model took the slow and rounded way once a model had been traced.
    """
    model = interp.load_model("tiny").model.bfloat16()
    replay.wrapped(model)
    assert all(map(is_plain, projections(model)))
    parts = families.parts(model)
    vectors = torch.randn(5, parts.final_norm.weight.numel())
    weight = parts.layers[0].o_proj.weight.detach().float()
    folded = readout.fold(parts, 0, vectors).flatten(1)
    torch.testing.assert_close(folded, vectors @ weight, rtol=0, atol=0)


@pytest.mark.parametrize("is_traced_first", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_projection_is_not(change, is_traced_first):
    model = interp.load_model("tiny").model
    if is_traced_first:
        replay.wrapped(model)
    CHANGES[change](projections(model)[1])
    replay.wrapped(model)
    assert [is_plain(module) for module in projections(model)[:3]] == [True, False, True]


def test_adapted_projections_are_not():
    config = peft.LoraConfig(r=2, target_modules=["v_proj"])
    model = peft.get_peft_model(interp.load_model("tiny").model, config)
    replay.wrapped(model)
    assert [is_plain(module) for module in projections(model)[:2]] == [False, True]
    assert not is_plain(nn.LayerNorm(3))
