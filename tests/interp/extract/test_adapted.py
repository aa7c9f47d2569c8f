"""Ledgers of adapted, hooked and quantised models, of many kinds.

Exact, or refused by name before there is a number, and the model is as it was.
"""

import copy
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
from torch import nn

import interp
from interp.model.identity import fingerprint
from interp.model.linear import check_linear
from interp.model.parts import Parts

TEXT = r".*language_model.*\."


def lora(modules, **options):
    return peft.LoraConfig(r=4, target_modules=modules, **options)


EXACT = {
    "a bias behind o_proj": lora(TEXT + "o_proj", lora_bias=True),
    "a bias behind v_proj": lora(TEXT + "v_proj", lora_bias=True),
    "a bias behind down_proj": lora(TEXT + "down_proj", lora_bias=True),
    "LoRA on the head": lora(["lm_head"]),
    "LoRA on the embeddings": lora(TEXT + "embed_tokens"),
    "DoRA": lora(TEXT + "(q|v|o)_proj", use_dora=True),
    "trained biases": lora(["v_proj"], bias="all"),
    "a saved head": lora(["q_proj"], modules_to_save=["lm_head"]),
    "norms": peft.LNTuningConfig(target_modules=["input_layernorm", "norm"]),
    "trainable tokens": lora(["q_proj"], trainable_token_indices=[30, 31]),
    "only tokens": peft.TrainableTokensConfig(
        token_indices=[30, 31], target_modules=["embed_tokens"]
    ),
    "target parameters": lora([], target_parameters=["o_proj.weight"]),
    "IA3": peft.IA3Config(target_modules=["v_proj", "o_proj"], feedforward_modules=[]),
    "OFT": peft.OFTConfig(r=0, oft_block_size=4, target_modules=TEXT + "o_proj"),
    "VeRA": peft.VeraConfig(r=4, target_modules=["o_proj"]),
    "HRA": peft.HRAConfig(r=4, target_modules=TEXT + "v_proj"),
    "FourierFT": peft.FourierFTConfig(n_frequency=10, target_modules=TEXT + "v_proj"),
}
REFUSED = {
    "a bias behind the head": (
        lora(["lm_head"], lora_bias=True),
        "embedding without a bias",
    ),
    "prompt tuning": (
        peft.PromptTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=4, token_dim=128, num_layers=6
        ),
        "an adapter that changes weights",
    ),
    "prefix tuning": (
        peft.PrefixTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=4,
            token_dim=64,
            num_layers=6,
            num_attention_heads=2,
        ),
        "an adapter that changes weights",
    ),
}


@pytest.fixture(scope="module")
def sample():
    return interp.load_samples("digits", limit=7)[6]


def adapted(config):
    vlm = interp.load_model("tiny")
    model = peft.get_peft_model(vlm.model, config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return replace(vlm, model=model)


@pytest.mark.parametrize("kind", EXACT)
def test_parts_sum_to_the_adapted_models_own_logit(kind, sample):
    vlm = adapted(EXACT[kind])
    ds = interp.extract.ledger(vlm, sample)
    assert float((abs(ds["remainder"]) / ds["magnitude"]).max()) < 5e-6
    plain = interp.extract.ledger(interp.load_model("tiny"), sample)
    assert float(abs(ds["logit"] - plain["logit"]).max()) > 1e-3, "the adapter does nothing"
    fx = interp.extract.effects(vlm, sample)
    gap = abs(fx["effect"].sum("path") - fx["total"]) / ds["magnitude"].max()
    assert float(gap.max()) < 1e-5
    origins = interp.extract.origins(vlm, sample)
    direct = abs(ds["direct"].sum(("layer", "head"))).sum("source")
    assert float((abs(origins["origin_remainder"]).sum("source") / direct).max()) < 1e-4


def test_maps_of_an_adapter_on_norms_are_those_of_the_merged_model(sample):
    """Origins and two hops read the norm in front of attention, and its adapter with it."""
    vlm = adapted(EXACT["norms"])
    merged = replace(vlm, model=copy.deepcopy(vlm.model).merge_and_unload())
    kinds = ("direct", "bottleneck", "two_hop", "effect")
    mine, theirs = (interp.extract.maps(one, sample, kinds=kinds)["map"] for one in (vlm, merged))
    assert float(abs(mine - theirs).max()) < 1e-5 * float(abs(theirs).max())
    base = interp.extract.maps(interp.load_model("tiny"), sample, kinds=kinds)["map"]
    assert float(abs(mine - base).max()) > 1e-2 * float(abs(base).max())
    origins = [interp.extract.origins(one, sample)["direct_by_origin"] for one in (vlm, merged)]
    assert float(abs(origins[0] - origins[1]).max()) < 1e-5 * float(abs(origins[1]).max())


def test_origins_that_miss_a_part_are_an_error(sample, monkeypatch):
    vlm = adapted(EXACT["norms"])
    base = lambda parts, norm: norm.weight  # noqa: E731 - the base's, as if there were no adapter
    monkeypatch.setattr(Parts, "weight_of", base)
    with pytest.raises(ValueError, match="expected origins that sum to the direct terms"):
        interp.extract.origins(vlm, sample)


def test_a_bias_behind_o_proj_is_shared_by_the_heads(sample):
    """As the naive oracle has it; peft cannot merge such a bias, and the certificate says so."""
    vlm = adapted(EXACT["a bias behind o_proj"])
    certificate = interp.validate.certify(vlm, [sample])
    assert (
        "not asked: expected an adapter that can be merged" in certificate.checks.attrs["witness"]
    )


@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_part_has_is_refused_and_leaves_the_model_as_it_was(kind, sample):
    config, message = REFUSED[kind]
    vlm = adapted(config)
    before = fingerprint(vlm.model), fingerprint(vlm.model, adapter=True)
    for call in (interp.extract.ledger, interp.extract.effects, interp.extract.first_order):
        with pytest.raises(ValueError, match=message):
            call(vlm, sample)
    assert before == (fingerprint(vlm.model), fingerprint(vlm.model, adapter=True))


# ------------------------------------------------------------------------------------------ hooks


def layer_of(vlm, number=2):
    return vlm.model.model.language_model.layers[number]


def test_a_head_ablated_by_a_pre_hook_contributes_nothing(sample):
    vlm = interp.load_model("tiny")
    interp.extract.ledger(vlm, sample)  # wrapped before the hook came
    gate = torch.cat([torch.zeros(32), torch.ones(96)])
    projection = layer_of(vlm).self_attn.o_proj
    hook = projection.register_forward_pre_hook(lambda _m, args: (args[0] * gate,))
    ds = interp.extract.ledger(vlm, sample)
    assert float((abs(ds["remainder"]) / ds["magnitude"]).max()) < 5e-6
    assert float(abs(ds["direct"].sel(layer=2, head=0)).max()) < 1e-6
    assert float(abs(ds["direct"].sel(layer=2, head=1)).max()) > 1e-3
    hook.remove()
    assert float(abs(interp.extract.ledger(vlm, sample)["direct"].sel(layer=2, head=0)).max()) > 0.1


def added(value):
    def hook(_module, _args, output):
        if isinstance(output, tuple):
            return output[0] + value, *output[1:]
        return output + value

    return hook


STEERED = {
    "the layer's output": lambda vlm: layer_of(vlm).register_forward_hook(added(0.5)),
    "the layer's input": lambda vlm: layer_of(vlm).register_forward_pre_hook(
        lambda _m, args: (args[0] + 0.5, *args[1:])
    ),
    "the attention's output": lambda vlm: layer_of(vlm).self_attn.register_forward_hook(added(0.5)),
    "the FFN's output": lambda vlm: layer_of(vlm).mlp.register_forward_hook(added(0.5)),
}


@pytest.mark.parametrize("place", STEERED)
@pytest.mark.parametrize("call", ["ledger", "effects", "node_effects", "first_order", "shapley"])
def test_a_steered_stream_is_exact_or_refused(place, call, sample):
    """Never a number that silently lacks what the hook writes."""
    vlm = interp.load_model("tiny")
    options = {}
    if call in ("node_effects", "shapley"):
        options["references"] = interp.extract.references(vlm, sample, kinds=("blur",))
    hook = STEERED[place](vlm)
    try:
        ds = getattr(interp.extract, call)(vlm, sample, **options)
    except ValueError as error:
        assert "changed by hooks" in str(error)
    else:
        if call == "ledger":
            assert float((abs(ds["remainder"]) / ds["magnitude"]).max()) < 5e-6
        if call in ("effects", "node_effects"):
            np.testing.assert_allclose(ds["effect"].sum("path"), ds["total"], atol=1e-4)
    finally:
        hook.remove()


# --------------------------------------------------------------------------------- whole numbers


class Whole(nn.Module):
    """A linear layer that keeps its weight as whole numbers with a scale, as int8 models do."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        whole = (linear.weight.detach() / scale).round().to(torch.int8)
        self.weight = nn.Parameter(whole, requires_grad=False)
        self.register_buffer("scale", scale)
        self.register_buffer("constant", None if linear.bias is None else linear.bias.detach())

    def forward(self, x):
        return nn.functional.linear(x, self.weight * self.scale, self.constant)


def test_weights_stored_as_whole_numbers_are_read_through_the_module(sample):
    vlm = interp.load_model("tiny")
    for layer in vlm.model.model.language_model.layers:
        for name in ("v_proj", "o_proj"):
            setattr(layer.self_attn, name, Whole(getattr(layer.self_attn, name)))
    before = layer_of(vlm).self_attn.o_proj.weight.clone()
    ds = interp.extract.ledger(vlm, sample)
    assert float((abs(ds["remainder"]) / ds["magnitude"]).max()) < 5e-6
    assert torch.equal(layer_of(vlm).self_attn.o_proj.weight, before)
    check_linear(layer_of(vlm).self_attn.o_proj, "layer 2 o_proj")


def test_offloaded_weights_are_refused_by_name(sample):
    vlm = interp.load_model("tiny")
    vlm.model.model.language_model.layers[3].mlp.to("meta")
    with pytest.raises(ValueError, match="weights in memory, got none for .*layers.3.mlp"):
        interp.extract.ledger(vlm, sample)
