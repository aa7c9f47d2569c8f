"""The certificate passes on what is right, and says what is wrong and where."""

import json
import logging
import math
import re
import types
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

import interp
from analyses import validate_extractor
from interp.algebra import ledger, readout
from interp.capture import prefill
from interp.capture import slots as rows
from interp.model.identity import fingerprint
from interp.validate import Certificate, NotCertified, certify, witness
from interp.validate import rounding as rounding_of
from interp.validate.case import by_layer, make_case
from interp.validate.rounding import rounding
from interp.validate.sums import stream_sums
from interp.vocabulary import BOUNDS, EDGE_MODES
from tests.support import commands, odd_models
from train.certified import Certified


@pytest.fixture(scope="module")
def samples():
    return interp.load_samples("digits", split="test", limit=2)


def failed(vlm, samples, **options) -> Certificate:
    with pytest.raises(NotCertified) as caught:
        certify(vlm, samples[:1], **options)
    assert caught.value.certificate.failures
    assert not caught.value.certificate.is_passed
    return caught.value.certificate


@pytest.mark.parametrize("attention", ["sdpa", pytest.param("eager", marks=pytest.mark.long)])
def test_the_embedded_model_passes_with_witness(samples, attention):
    found = certify(interp.load_model("tiny", attn_implementation=attention), samples)
    assert found.is_passed and not found.failures
    assert found.checks.sizes["check"] >= 42
    assert sum("TransformerLens" in str(name) for name in found.checks.check.values) == 7
    written = json.loads(found.to_json())
    assert written["attn_implementation"] == attention
    assert written["dtype"] == "float32"
    assert {"check", "error", "bound", "signal", "layer", "is_passed"} == set(written["checks"][0])
    assert all(one["signal"] > one["bound"] for one in written["checks"])
    assert written["witness"].startswith("TransformerLens 4.")
    assert all(one["error"] <= one["bound"] for one in written["checks"])
    assert not re.search(r"0\.\d{9}", str(found))  # numbers are rounded for print


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float64", marks=pytest.mark.long)])
def test_other_dtypes_pass_with_witness(samples, dtype):
    found = certify(interp.load_model("tiny", dtype=dtype), samples[:1])
    assert found.checks.attrs["dtype"] == dtype
    ledgers = found.checks["error"].sel(check="ledger sums to the model's logit (centered)")
    assert 0 < float(ledgers) < {"bfloat16": 5e-2, "float64": 1e-6}[dtype]


OFTEN = ("four_to_two",)
WITNESSED = [pytest.param(s, marks=() if s in OFTEN else pytest.mark.long) for s in odd_models.ALL]


@pytest.mark.parametrize("odd_model", WITNESSED, indirect=True)
def test_random_models_pass_with_witness_where_it_knows_them(odd_model, processor, samples):
    vlm = odd_models.vlm(odd_model, processor)
    found = certify(vlm, samples)
    assert found.is_passed
    if odd_model.config.model_type in ("qwen2_vl", "internvl"):
        assert found.checks.attrs["witness"] == "not asked"
        with pytest.raises(ValueError, match="TransformerLens knows, got (Qwen2|Intern)VLForCond"):
            certify(vlm, samples, witness=True)
    else:
        errors = found.checks["error"]
        assert float(errors.sel(check="TransformerLens: attribution of heads")) < 1e-6


def adapted(vlm):
    """The model with a LoRA on queries, values and the output projection that does something."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "o_proj"], lora_dropout=0.1)
    model = get_peft_model(vlm.model, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return odd_models.vlm(model, vlm.processor)


def test_adapters_pass_unmerged_and_merged(samples):
    vlm = adapted(interp.load_model("tiny"))
    found = certify(vlm, samples[:1])
    assert found.checks["is_passed"].sel(check="merged adapter equals unmerged")
    assert found.checks.attrs["adapter_hash"] == fingerprint(vlm.model, adapter=True)
    assert found.covers(vlm.model)
    with torch.no_grad():
        next(p for n, p in vlm.model.named_parameters() if "lora_A" in n).mul_(2)
    assert not found.covers(vlm.model)
    assert not found.covers(interp.load_model("tiny").model)


# ------------------------------------------------------------------------------- what is wrong


def test_a_layer_that_behaves_otherwise_in_a_replay_is_named(samples):
    """A hook that acts on whole sequences alone: no replay of single rows sees it."""
    vlm = interp.load_model("tiny")
    ffn = vlm.model.model.language_model.layers[3].mlp
    ffn.register_forward_hook(lambda _m, _a, out: out * (2 if out.shape[1] > 20 else 1))
    lines = failed(vlm, samples[:1], witness=False).failures
    assert any(line.startswith("residual stream adds up, layer 3:") for line in lines)
    assert any(line.startswith("ledger sums to the model's logit (raw)") for line in lines)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_rounding_is_measured_and_small_in_every_dtype(samples, dtype):
    vlm = interp.load_model("tiny", dtype=dtype)
    found, _ = rounding(make_case(vlm, samples[0], BOUNDS[dtype]))
    # transformers computes norms in float32 at best: what one unit of float64 moves is gone there.
    floor = -1.0 if dtype == "float64" else torch.finfo(getattr(torch, dtype)).eps
    assert floor < found.error < found.bound / 5


def test_noise_that_is_not_rounding_widens_no_bound(samples):
    """A layer that is never twice the same: in float32 it cannot pass for rounding."""
    vlm = interp.load_model("tiny")
    ffn = vlm.model.model.language_model.layers[3].mlp
    ffn.register_forward_hook(lambda _m, _a, out: out + 1e-2 * torch.randn_like(out))
    certificate = failed(vlm, samples[:1], witness=False)
    assert any(line.startswith("rounding moves the model little") for line in certificate.failures)
    assert float(certificate.checks["bound"].max()) < 0.02


def test_the_bound_of_logits_lies_above_what_rounding_moves_and_not_far(samples, monkeypatch):
    """Twice the largest change of a target's logit above the mean; at most twice the dtype's."""
    vlm = interp.load_model("tiny")
    case = make_case(vlm, samples[0], 1e-3)
    assert rounding(case)[1].logit_bound == 1e-3
    monkeypatch.setattr(rounding_of, "_moved", lambda embeddings, draw: embeddings * 1.05)

    def longer(_module, args, kwargs):
        return args, kwargs | {"inputs_embeds": kwargs["inputs_embeds"] * 1.05}

    logits = []
    for change in (None, longer):
        language_model = vlm.model.model.language_model
        hook = change and language_model.register_forward_pre_hook(change, with_kwargs=True)
        with torch.no_grad():
            rows = vlm.model(**case.query.batch).logits[0, case.query.rows].double()
        own = rows.gather(1, case.query.targets[:, None])[:, 0]
        logits.append(own - rows.mean(dim=1))
        if hook:
            hook.remove()
    moved = float(np.max((logits[1] - logits[0]).abs().numpy() / case.magnitude))
    # The dtype's bound, and the one that is used, both in units of what was moved.
    for bound, used in ((3, 3), (1.5, 2), (0.75, 1.5), (0.1, 0.2)):
        found = rounding(replace(case, bound=bound * moved))[1].logit_bound
        assert found == pytest.approx(used * moved, rel=1e-3)


def test_rounding_is_measured_with_the_image_cut_off_too(samples, monkeypatch):
    vlm = interp.load_model("tiny")
    case = make_case(vlm, samples[0], 1e-3).of([-1])
    context = prefill.prefill(vlm.model, case.query.batch, case.query.rows)
    with torch.no_grad():
        found = rounding_of._logits_with_cuts(case, context, context.given["inputs_embeds"])
    for logit, mode in zip(found[:, 0], EDGE_MODES, strict=True):
        options = {"sources": ["image"], "mode": mode, **case.asked}
        effect = interp.extract.effects(vlm, samples[0], **options)
        expected = case.ledger["logit"] - effect["total"].squeeze()
        assert logit == pytest.approx(float(expected.item()), abs=1e-4)

    # An effect may err by what rounding moves in both of its logits; each at most twice the
    # dtype's bound.
    for moved, used in ((1e-5, 1e-3), (7e-4, 1.4e-3), (9.0, 2e-3)):
        cuts = iter([found, *[found + moved * case.magnitude] * rounding_of.N_DRAWS])
        monkeypatch.setattr(rounding_of, "_logits_with_cuts", lambda *_, cuts=cuts: next(cuts))
        widened = rounding(case)[1]
        assert widened.logit_bound == 1e-3
        assert widened.effect_bound == pytest.approx(used, rel=1e-2)
        assert case.compare("an effect", 0, 1).bound == 1e-3
        assert widened.compare("an effect", 0, 1).bound == widened.effect_bound


def test_what_is_not_a_number_never_passes(samples, monkeypatch):
    """Python's max forgets one that does not come first."""
    case = make_case(interp.load_model("tiny"), samples[0], BOUNDS["float32"])
    for name in (name for name, value in case.stream.items() if len(value)):
        stream = {key: value.clone() for key, value in case.stream.items()}
        stream[name][3, 5, 7] = torch.nan
        (finding,) = stream_sums(replace(case, stream=stream))
        assert not finding.is_passed, name
    monkeypatch.setattr(rounding_of, "_moved", lambda content, draw: content * torch.nan)
    assert not rounding(case)[0].is_passed


def test_wrong_value_biases_are_noticed(samples, monkeypatch):
    right = readout.value_biases

    def wrong(parts, dtype):
        biases = right(parts, dtype)
        biases[2] = biases[2] * 1.5
        return biases

    monkeypatch.setattr(readout, "value_biases", wrong)
    lines = failed(interp.load_model("tiny"), samples[:1], witness=False).failures
    assert any(
        line.startswith("folded value biases equal the naive ones, layer 2:") for line in lines
    )
    # Direct terms and value biases are wrong by the same amount: their sum cannot show it.
    assert not any("ledger sums" in line for line in lines)


def test_a_wrong_grouping_of_heads_is_noticed(samples, monkeypatch):
    right = ledger.slot_scores
    monkeypatch.setattr(ledger, "slot_scores", lambda folded, values: right(folded, values.flip(1)))
    lines = failed(interp.load_model("tiny"), samples[:1], witness=False).failures
    assert any(
        line.startswith("folded direct terms equal the naive ones, layer 0:") for line in lines
    )


def test_a_replay_that_sees_too_much_is_noticed(samples, monkeypatch):
    right = rows.slots

    def wrong(runs, positions, variants):
        found = right(runs, positions, variants)
        found.is_context[..., 0] = False
        return found

    vlm = interp.load_model("tiny")
    monkeypatch.setattr(rows, "slots", wrong)
    lines = failed(vlm, samples[:1], witness=False).failures
    assert any(
        line.startswith("attention rows equal eager attention weights, layer 0") for line in lines
    )


def test_the_witness_contradicts(samples, monkeypatch):
    right = witness.copied

    def other(vlm):
        model = right(vlm)
        with torch.no_grad():
            model.model.language_model.layers[4].mlp.down_proj.weight.mul_(1.01)
        return model

    monkeypatch.setattr(witness, "copied", other)
    lines = failed(interp.load_model("tiny"), samples[:1]).failures
    assert all(line.startswith("TransformerLens") for line in lines)
    assert any(line.startswith("TransformerLens: ffn_out, layer 4:") for line in lines)
    assert any(line.startswith("TransformerLens: attribution of embedding") for line in lines)


def test_an_error_that_is_no_number_fails():
    found = by_layer("a check", [0.0, math.nan, 1.0], bound=0.5)
    assert found.layer == 1 and not found.is_passed


def test_a_wrong_mean_is_noticed_by_a_forward_alone(samples, monkeypatch):
    """The paths of a cut with a wrong fill still sum to the total of that cut."""
    edges = import_module("interp.extract.effects")
    right = edges.mean_values
    monkeypatch.setattr(edges, "mean_values", lambda *a: [1.1 * one for one in right(*a)])
    lines = failed(interp.load_model("tiny"), samples[:1], witness=False).failures
    assert [line.split(":")[0] for line in lines] == ["a cut equals a forward with it (mean)"]


def test_padding_that_is_seen_is_noticed(samples, monkeypatch):
    right = prefill.padded

    def wrong(*given):
        return right(*given) | {"attention_mask": torch.ones_like(right(*given)["input_ids"])}

    monkeypatch.setattr(prefill, "padded", wrong)
    lines = failed(interp.load_model("tiny"), samples[:1], witness=False).failures
    names = [line.split(":")[0] for line in lines]
    assert names == [f"padding and batching change no {one}" for one in ("ledger", "effect")]


def test_a_witness_that_is_not_there(samples, monkeypatch):
    monkeypatch.setattr(witness, "find_spec", lambda _name: None)
    with pytest.raises(ValueError, match=r"expected TransformerLens .* pip install"):
        certify(interp.load_model("tiny"), samples)
    with pytest.raises(ValueError, match="expected one or more samples"):
        certify(interp.load_model("tiny"), [])


def test_the_witness_gets_a_copy_whatever_a_trainer_put_in_forwards_place(samples):
    """A closure over the original's forward would run the original: no hook of the copy's fires."""
    vlm = interp.load_model("tiny")
    right = vlm.model.forward
    vlm.model.forward = types.MethodType(lambda _self, **given: right(**given), vlm.model)
    assert certify(vlm, samples[:1]).is_passed


# ------------------------------------------------------------------------------ who relies on it


def test_certifying_disturbs_nobody(samples):
    """Random numbers, logging and the model's training mode are as before."""
    vlm = interp.load_model("tiny")
    vlm.model.train()
    before = torch.get_rng_state(), logging.getLogger().level, list(logging.getLogger().handlers)
    certify(vlm, samples[:1])
    assert vlm.model.training
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (logging.getLogger().level, list(logging.getLogger().handlers)) == before[1:]


def test_training_refuses_a_model_without_a_certificate(tmp_path, samples, monkeypatch):
    from trl import SFTConfig, SFTTrainer

    from train.rows import texts
    from train.tiny.mix import Mix

    monkeypatch.setattr(interp, "load_samples", lambda *_, **__: samples[:1])
    vlm = interp.load_model("tiny")
    config = SFTConfig(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        max_length=None,
        save_strategy="no",
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
    )
    mix = Mix(4, 1, (0.0, 0.0, 0.0), ("count",), 0.0)
    scenes = texts(4, mix.scene)

    def trainer():
        return SFTTrainer(
            model=vlm.model,
            args=config,
            train_dataset=scenes,
            processing_class=vlm.processor,
            callbacks=[Certified()],
        )

    attention = vlm.model.model.language_model.layers[1].self_attn
    hook = attention.register_forward_hook(
        lambda _m, _a, out: (out[0] * (1.5 if out[0].shape[1] > 20 else 1), *out[1:])
    )
    weights = fingerprint(vlm.model)
    with pytest.raises(NotCertified, match="residual stream adds up, layer 1"):
        trainer().train()
    assert fingerprint(vlm.model) == weights
    hook.remove()
    trainer().train()
    assert fingerprint(vlm.model) != weights
    assert json.loads((tmp_path / "certificate.json").read_text())["model_hash"] == weights


def test_the_command_writes_the_certificate(tmp_path):
    out = tmp_path / "certificate.json"
    done = commands.run(validate_extractor, "--limit", 1, "--no-witness", "--out", out)
    assert "checks passed" in done.stdout
    assert json.loads(out.read_text())["is_passed"]
