"""Extraction leaves nothing behind: memory, state, threads, and what happens after an exception."""

import gc
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

import interp
from tests.support import odd_models

N_TRACES = 500 if os.environ.get("SOAK") else 25
EXTRACTIONS = ("ledger", "effects", "first_order", "origins", "residual", "node_effects", "shapley")


@pytest.fixture(scope="module")
def samples():
    return interp.load_samples("digits", split="test", limit=4)


@pytest.fixture
def vlm():
    return interp.load_model("tiny")


def run(vlm, sample, name: str):
    options = {}
    if name in ("node_effects", "shapley"):
        refs = interp.extract.references(vlm, sample, kinds=("blur",))
        options = {"references": refs, "sources": ["image"]}
    if name == "first_order":
        options = {"n_nodes": 2}
    return getattr(interp.extract, name)(vlm, sample, **options)


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.long
def test_many_traces_leave_tensors_and_memory_constant(vlm, samples, tried):
    def some(count):
        for k in range(count):
            run(vlm, samples[k % len(samples)], EXTRACTIONS[k % len(EXTRACTIONS)])

    some(2 * len(EXTRACTIONS))
    tensors, memory = live_tensors(), resident_bytes()
    some(N_TRACES)
    assert live_tensors() == tensors
    assert resident_bytes() - memory < 32 * 2**20
    tried("one extraction after another", N_TRACES, "live tensors constant, memory within 32 MiB")


def state(model) -> list:
    """Everything that a caller could notice.

    Not Python's own random numbers: the shape checks of the tests draw from them.
    """
    base = model.get_base_model() if "get_base_model" in dir(model) else model
    return [
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002 - the global one is what must stay
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
        [(p.requires_grad, p.grad is None, p._version) for p in model.parameters()],
        [module.training for module in model.modules()],
        [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        base.model.rope_deltas,
        base.config._attn_implementation,
        base.config.text_config._attn_implementation,
        base.config.vision_config._attn_implementation,
        base.config.text_config.use_cache,
    ]


@pytest.mark.parametrize("name", [*EXTRACTIONS, "patch_effects"])
@pytest.mark.parametrize("is_training", [False, True])
def test_the_callers_state_is_as_before(vlm, samples, name, is_training):
    torch.manual_seed(0)
    model = get_peft_model(
        vlm.model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.5)
    )
    model.train(is_training)
    if is_training:
        model.gradient_checkpointing_enable()
    model.get_base_model().model.visual.eval()  # a mixed mode has to come back as it was
    model.get_base_model().model.rope_deltas = torch.tensor([[7]])
    adapted = odd_models.vlm(model, vlm.processor)
    run(adapted, samples[0], "residual")  # what is kept with the model from the first call on
    before = state(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        options = {"positions": [40]} if name == "patch_effects" else None
        if options:
            interp.extract.patch_effects(adapted, samples[0], **options)
        else:
            run(adapted, samples[0], name)
    assert state(model) == before


def test_gradients_of_a_training_step_are_kept(vlm, samples):
    batch = interp.inputs.prompts.teacher_forced(vlm.processor, samples[0], None).batch
    vlm.model.train()
    vlm.model(**batch, labels=batch["input_ids"]).loss.backward()
    before = [None if p.grad is None else p.grad.clone() for p in vlm.model.parameters()]
    for name in EXTRACTIONS:
        run(vlm, samples[0], name)
    for parameter, gradient in zip(vlm.model.parameters(), before, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)


def test_threads_get_what_they_would_get_alone(vlm, samples):
    jobs = [(name, sample) for name in ("ledger", "effects", "first_order") for sample in samples]
    alone = [run(vlm, sample, name) for name, sample in jobs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda job: run(vlm, job[1], job[0]), jobs))
    for one, other in zip(together, alone, strict=True):
        assert one.identical(other)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("is_replay", [False, True])
def test_an_exception_leaves_the_model_usable(vlm, samples, error, is_replay):
    expected = run(vlm, samples[0], "effects")
    before = state(vlm.model)

    def fail(_module, args):
        if (args[0].shape[1] < 40) == is_replay:
            raise error("out of luck")

    ffn = vlm.model.model.language_model.layers[2].mlp
    hook = ffn.register_forward_pre_hook(fail)
    for name in EXTRACTIONS:
        if is_replay and name == "residual":
            continue
        with pytest.raises(BaseException, match="out of luck"):
            run(vlm, samples[0], name)
    hook.remove()
    assert state(vlm.model) == before
    assert run(vlm, samples[0], "effects").identical(expected)


def test_not_a_number_is_refused_naming_the_layer_and_leaves_the_model_usable(vlm, samples):
    expected = run(vlm, samples[0], "ledger")
    ffn = vlm.model.model.language_model.layers[3].mlp
    hook = ffn.act_fn.register_forward_hook(lambda _m, _a, out: out * torch.nan)
    with pytest.raises(ValueError, match=r"NaN or infinity in the FFN output of\s+layer 3"):
        run(vlm, samples[0], "ledger")
    hook.remove()
    assert run(vlm, samples[0], "ledger").identical(expected)
