"""No tensor is left on the CPU: on a device that is not it, everything runs and says the same."""

import numpy as np
import pytest
import torch

import interp
from interp import extract
from interp.attribution import METHODS
from interp.scoring import RULES, scores
from interp.validate import certify
from tests.support import far, odd_models
from tests.support.odd_models import batch

CALLS = {
    "ledger": {},
    "effects": {"mode": "mean"},
    "origins": {},
    "first_order": {"n_nodes": 2},
    "patch_effects": {"positions": [40], "targets": [30]},
    "residual": {"positions": [9]},
    "node_effects": {"references": None},
    "shapley": {"references": None},
    "maps": {"kinds": ("direct", "bottleneck", "two_hop", "effect"), "only": "answer"},
}
KINDS = ("mean", "other", "twin", "blur")


@pytest.fixture(scope="module")
def samples():
    return interp.load_samples("digits", split="test", limit=2)


@pytest.fixture(scope="module")
def near():
    return interp.load_model("tiny", device="cpu")


@pytest.fixture(scope="module")
def away():
    """The same model on the device."""
    vlm = interp.load_model("tiny", device="cpu")
    far.moved(vlm.model)
    return vlm


def asked(vlm, name: str, options: dict, samples) -> dict:
    if "references" in options:
        return {"references": extract.references(vlm, samples[0], pool=samples, kinds=KINDS)}
    return options


@pytest.mark.parametrize("name", list(CALLS))
def test_extraction_runs_there_and_gives_the_same_numbers(near, away, samples, name):
    call, options = getattr(extract, name), CALLS[name]
    expected = call(near, samples[0], **asked(near, name, options, samples))
    with far.FarDevice():
        found = call(away, samples[0], **asked(away, name, options, samples))
    assert set(found.variables) == set(expected.variables)
    for variable in expected.data_vars:
        np.testing.assert_array_equal(found[variable], expected[variable], err_msg=str(variable))


QUICK = ("direct (Eq. 1)", "TAM", "Grad-CAM", "occlusion")


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=() if m in QUICK else pytest.mark.long) for m in METHODS]
)
def test_attribution_runs_there(away, samples, method):
    with far.FarDevice():
        last = (
            len(extract.question.ask(away, samples[0]).rows) - 1
        )  # the first has no thinking before it
        assert np.isfinite(METHODS[method](away, samples[0], last)).all()


@pytest.mark.long
def test_the_certificate_runs_there(samples, processor):
    model = odd_models.make("one_to_one", processor, torch.float32)
    vlm = interp.wrap(far.moved(model), processor)
    with far.FarDevice():
        assert certify(vlm, samples[:1], witness=False).is_passed


def test_generation_scores_and_batches_run_there(near, away, samples):
    sample = samples[0]
    with far.FarDevice():
        text = away.answer(sample.image, sample.question)
        several = list(extract.each([("ledger", {}), ("effects", {})], away, samples))
        by_rule = {rule: scores(away, [(sample, text)], rule=rule)[0] for rule in RULES}
    assert text == near.answer(sample.image, sample.question)
    assert len(several) == 2
    for rule, found in by_rule.items():
        np.testing.assert_array_equal(
            found["alignment"],
            scores(near, [(sample, text)], rule=rule)[0]["alignment"],
            err_msg=rule,
        )


def test_the_device_refuses_what_a_gpu_would(away, processor):
    inputs = batch(processor, dtype=torch.float32)
    with far.FarDevice():
        assert away.device == far.DEVICE
        with pytest.raises(RuntimeError, match="expected all tensors on cuda:0"):
            away.model(**inputs)
        weight = away.model.lm_head.weight.detach()
        with pytest.raises(TypeError, match="can't convert cuda tensor"):
            weight.numpy()
        with pytest.raises(RuntimeError, match="far indices of a near tensor"):
            torch.arange(4)[torch.arange(2, device="cuda")]
        with pytest.raises(RuntimeError, match="expected all tensors"):
            torch.cat([weight, torch.zeros(weight.shape)])
        torch.testing.assert_close((weight + torch.tensor(1.0)).cpu(), weight.cpu() + 1)


def test_tensors_of_a_bare_model_are_moved(processor):
    model = odd_models.make("two_to_one", processor, torch.float32)
    inputs = batch(processor, dtype=torch.float32)
    expected = extract.ledger(model, inputs, positions=[50, 60])
    far.moved(model)
    with far.FarDevice():
        found = extract.ledger(model, inputs, positions=[50, 60])
    np.testing.assert_array_equal(found["direct"], expected["direct"])
