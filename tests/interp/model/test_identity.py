"""The fingerprint sees every weight, and every switch of an adapter."""

import peft
import pytest
import torch

import interp
from interp.model import identity
from interp.model.identity import fingerprint

KINDS = {
    "LoRA": peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
    "IA3": peft.IA3Config(
        target_modules=["v_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "LoHa": peft.LoHaConfig(r=4, target_modules=["v_proj"]),
    "LoKr": peft.LoKrConfig(r=4, target_modules=["v_proj"]),
    "OFT": peft.OFTConfig(r=0, oft_block_size=4, target_modules=["v_proj"]),
    "VeRA": peft.VeraConfig(r=4, target_modules=["up_proj"]),
    "saved modules": peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["down_proj"]),
    "trainable tokens": peft.LoraConfig(
        r=4, target_modules=["q_proj"], trainable_token_indices=[30, 31]
    ),
    "norms": peft.LNTuningConfig(target_modules=["input_layernorm"]),
}


def both(model):
    return fingerprint(model), fingerprint(model, adapter=True)


@pytest.mark.parametrize("seed", range(12))
def test_one_number_of_one_weight_is_another_model(seed):
    """Whichever it is; and the same again once it is put back."""
    model = interp.load_model("tiny").model
    before = fingerprint(model)
    generator = torch.Generator().manual_seed(seed)
    weights = list(model.parameters())
    weight = weights[int(torch.randint(len(weights), (), generator=generator))]
    place = int(torch.randint(weight.numel(), (), generator=generator))
    flat = weight.detach().view(-1)
    value = flat[place].clone()
    flat[place] = torch.nextafter(value, value + 1)
    assert fingerprint(model) != before
    flat[place] = value
    assert fingerprint(model) == before


def test_rows_that_are_exchanged_are_another_model():
    model = interp.load_model("tiny").model
    before = fingerprint(model)
    rows = model.get_input_embeddings().weight.detach()
    rows[[30, 31]] = rows[[31, 30]]
    assert fingerprint(model) != before


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_of_every_kind_are_told_apart(kind):
    base = interp.load_model("tiny").model
    bare = both(base)
    model = peft.get_peft_model(base, KINDS[kind]).eval()
    seen = [both(model)]
    for _ in range(2):
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.01)
        seen.append(both(model))
    with model.disable_adapter():
        seen.append(both(model))
    assert {of_base for of_base, _ in seen} == {bare[0]}
    assert len({bare[1], *(of_adapter for _, of_adapter in seen)}) == 5
    assert both(model) == seen[2]


def test_another_adapter_and_another_scaling_show():
    model = peft.get_peft_model(interp.load_model("tiny").model, KINDS["LoRA"]).eval()
    model.add_adapter("second", KINDS["LoRA"])
    first = both(model)
    model.set_adapter("second")
    second = both(model)
    for module in model.modules():
        if hasattr(module, "scale_layer"):
            module.scale_layer(0.5)
    assert len({first[1], second[1], both(model)[1]}) == 3
    assert first[0] == second[0] == both(model)[0]


def test_a_model_that_is_held_is_hashed_once_and_seen_anew_afterwards(monkeypatch):
    vlm = interp.load_model("tiny", device="cpu")
    asked = []
    digests = identity._digests
    monkeypatch.setattr(identity, "_digests", lambda weights: asked.append(1) or digests(weights))
    before = identity.fingerprints(vlm.model)
    other = interp.load_model("tiny-cold", device="cpu")
    asked.clear()
    with identity.held(vlm.model):
        assert [identity.fingerprints(vlm.model) for _ in range(3)] == [before] * 3
        assert len(asked) == 1
        assert identity.fingerprints(other.model) != before and len(asked) == 2
    with torch.no_grad():
        next(iter(vlm.model.parameters())).mul_(2)
    assert identity.fingerprints(vlm.model) != before


def test_an_adapter_that_is_switched_off_is_seen_while_its_model_is_held():
    vlm = interp.load_model("tiny-cold", adapter="tiny-saliency-r1", device="cpu")
    on = identity.fingerprints(vlm.model)
    with identity.held(vlm.model):
        with vlm.model.disable_adapter():
            off = identity.fingerprints(vlm.model)
        assert identity.fingerprints(vlm.model) == on
    assert off[0] == on[0] and off[1] != on[1]
