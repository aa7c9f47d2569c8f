"""The certificate on models of the 3B's depth, heads and vocabulary: no false alarm, every fault.

`make soak` asks more models, and overfitted ones, in every dtype. On a GPU:
SOAK=1 TEST_DEVICE=cuda python -m pytest -n 14 tests/interp/validate/test_real_shape.py
REFUSALS=FILE notes there at once what was refused and why, as a soak may be stopped before its end.
"""

import os
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from unittest import mock

import pytest
import torch

import interp
from interp.algebra import ledger, readout
from interp.capture import prefill, slots
from interp.validate import (
    NotCertified,
    certificate,
    certify,
    forwards,
    interventions,
    naive,
    sums,
)
from tests.support import real_shape

IS_SOAK = "SOAK" in os.environ
DTYPES = ("bfloat16", "float32", "float16")
N_RANDOM, N_FAULTY = (50, 3) if IS_SOAK else (2, 1)


@pytest.fixture(autouse=True)
def as_on_a_cpu(monkeypatch):
    # cuDNN convolves float32 in TF32 unless told not to: the patch embedding, 1e-4 off.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="module")
def samples():
    return interp.load_samples("digits", split="test", limit=1)


def kind_of(seed: int) -> str:
    return real_shape.KINDS[seed % len(real_shape.KINDS)]


def dtypes_of(seed: int) -> tuple[str, ...]:
    """All of them in a soak; in the suite one each."""
    return DTYPES if IS_SOAK else DTYPES[seed : seed + 1]


def certified(vlm, samples, name: str):
    """The certificate of a model that is right; a refusal is noted before it is raised."""
    try:
        return certify(vlm, samples, witness=False)
    except NotCertified as error:
        if "REFUSALS" in os.environ:
            with Path(os.environ["REFUSALS"]).open("a") as file:
                file.write(f"{name}: {'; '.join(error.certificate.failures)}\n")
        raise


RANDOM = [
    # Half precision is slow where a CPU has no instructions for it.
    pytest.param(seed, dtype, marks=[pytest.mark.long] if dtype == "bfloat16" else [])
    for seed in range(N_RANDOM)
    for dtype in dtypes_of(seed)
]
if not IS_SOAK:
    RANDOM.append(pytest.param(0, "float32"))  # two models in the suite, the second in float32 too


@pytest.mark.parametrize(("seed", "dtype"), RANDOM)
def test_no_false_alarm_on_a_random_model(seed, dtype, samples, tried):
    vlm = real_shape.make(seed, kind_of(seed), dtype)
    passed = certified(vlm, samples, f"random {seed} {dtype}")
    assert passed.is_passed and passed.checks.attrs["dtype"] == dtype
    rounding = passed.checks["error"].sel(check="rounding moves the model little")
    assert torch.finfo(getattr(torch, dtype)).eps < float(rounding)
    tried("a right random model of the 3B's shape", 1, "certified")


@pytest.mark.skipif(not IS_SOAK, reason="minutes a model: make soak")
@pytest.mark.parametrize("seed", range(5))
def test_no_false_alarm_on_an_overfitted_model(seed, samples, tried):
    vlm = real_shape.taught(seed)
    for dtype in DTYPES:
        vlm.model.to(getattr(torch, dtype))
        assert certified(vlm, samples, f"overfitted {seed} {dtype}").is_passed
        tried("a right overfitted model of the 3B's shape", 1, "certified")


@pytest.mark.skipif(not IS_SOAK, reason="twelve gigabytes: make soak")
def test_a_model_of_the_full_width_is_right(samples):
    vlm = real_shape.make(0, "initial", "bfloat16", hidden=2048)
    assert certify(vlm, samples, witness=False).is_passed


# ------------------------------------------------------------------------------- planted faults


@contextmanager
def doubled_ffn(vlm):
    """A hook that acts on whole sequences alone: no replay of single rows sees it."""
    ffn = vlm.model.model.language_model.layers[20].mlp
    hook = ffn.register_forward_hook(lambda _m, _a, out: out * (2 if out.shape[1] > 20 else 1))
    yield
    hook.remove()


@contextmanager
def wrong_biases(_vlm):
    right = readout.value_biases

    def wrong(parts, dtype):
        biases = right(parts, dtype)
        biases[2] = biases[2] * -5 + biases[2].abs().max() + 1
        return biases

    with mock.patch.object(readout, "value_biases", wrong):
        yield


@contextmanager
def wrong_heads(_vlm):
    right = ledger.slot_scores
    with mock.patch.object(ledger, "slot_scores", lambda u, values: right(u, values.flip(1))):
        yield


@contextmanager
def blind_replay(_vlm):
    right = slots.slots

    def wrong(*arguments):
        found = right(*arguments)
        found.is_context[..., : found.is_context.shape[-1] // 2] = False
        return found

    with mock.patch.object(slots, "slots", wrong):
        yield


@contextmanager
def wrong_mean(_vlm):
    """Large, because a cut's effect is a small part of a logit in half precision."""
    edges = import_module("interp.extract.effects")
    right = edges.mean_values
    with mock.patch.object(edges, "mean_values", lambda *a: [9 * one + 9 for one in right(*a)]):
        yield


@contextmanager
def seen_padding(_vlm):
    right = prefill.padded

    def wrong(*arguments):
        batch = right(*arguments)
        return batch | {"attention_mask": torch.ones_like(batch["input_ids"])}

    with mock.patch.object(prefill, "padded", wrong):
        yield


# What a certificate has to say, and the check that says it.
FAULTS = {
    doubled_ffn: ("residual stream adds up, layer 20:", sums.stream_sums),
    wrong_biases: ("folded value biases equal the naive ones, layer 2:", naive.naive_terms),
    wrong_heads: ("folded direct terms equal the naive ones, layer 0:", naive.naive_terms),
    blind_replay: (
        "attention rows equal eager attention weights, layer 0:",
        forwards.rows_of_the_forward,
    ),
    wrong_mean: ("a cut equals a forward with it (mean):", interventions.interventions),
    seen_padding: ("padding and batching change no ledger:", sums.batch_sums),
}
FAULTY = [(seed, dtype) for seed in range(N_FAULTY) for dtype in dtypes_of(seed)]


def failures(vlm, samples, check) -> list[str]:
    """Lines of the certificate; in the suite, of the one check."""
    checks = certificate.PER_SAMPLE if IS_SOAK else (check,)
    with mock.patch.object(certificate, "PER_SAMPLE", checks):
        try:
            return certify(vlm, samples, witness=False).failures
        except NotCertified as error:
            return error.certificate.failures


@pytest.mark.long
@pytest.mark.parametrize(("seed", "dtype"), FAULTY)
def test_every_planted_fault_is_found_by_name(seed, dtype, samples, tried):
    vlm = real_shape.make(100 + seed, kind_of(seed + 1), dtype)
    missed = {}
    for fault, (expected, check) in FAULTS.items():
        with fault(vlm):
            lines = failures(vlm, samples, check)
        if not any(line.startswith(expected) for line in lines):
            missed[fault.__name__] = lines
    assert not missed
    happens = "found, with check and layer"
    tried("a planted fault in a model of the 3B's shape", len(FAULTS), happens)
