"""A model's state while it is read: mode, attention implementation, identity of its weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256

import torch
from torch import nn

from interp.model.families import base_model, volatile
from interp.model.parts import ONE_AT_A_TIME


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Context in which the model runs in eval mode without autocast; its state comes back after it.

    In training mode LoRA's dropout makes a replay wrong by 0.3, and gradient checkpointing leaves
    no cache. A caller's autocast, or one that mixed precision has put into the model's forward,
    would round the float32 algebra down, and inference mode would forbid the vector-Jacobian
    products of the readout: all are off inside. Threads wait for one another.
    """
    with ONE_AT_A_TIME, _eval_mode(model):
        yield


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    attributes = [(module, name, getattr(module, name)) for module, name in volatile(model)]
    wrapped = {m: m.forward for m in (model, base_model(model)) if "_original_forward" in vars(m)}
    for module in wrapped:
        module.forward = module._original_forward
    model.eval()
    device, with_grad = next(model.parameters()).device.type, torch.is_grad_enabled()
    try:
        with (
            torch.inference_mode(False),
            torch.set_grad_enabled(with_grad),
            torch.autocast(device, enabled=False),
        ):
            yield
    finally:
        for module, name, value in attributes:
            setattr(module, name, value)
        for module, forward in wrapped.items():
            module.forward = forward
        for module, mode in modes:
            module.training = mode


def fingerprint(model: nn.Module, *, adapter: bool = False) -> str:
    """A hash over names, shapes and 16 values of each weight: of the base, or of the adapter.

    A base model has the same one inside a peft wrapper and without.
    """
    named = sorted(
        (name.removeprefix("base_model.model.").replace(".base_layer", ""), tensor)
        for name, tensor in model.state_dict().items()
        if ("lora_" in name) == adapter
    )
    digest = sha256("".join(f"{name}{tuple(t.shape)}" for name, t in named).encode())
    sampled = []
    for _, tensor in named:
        flat = tensor.detach().reshape(-1)
        step = max(len(flat) // 16, 1)
        sampled.append(flat[::step][:16].float().to(named[0][1].device))
    digest.update(torch.cat(sampled).cpu().numpy().tobytes() if sampled else b"")
    return digest.hexdigest()[:16]


@contextmanager
def attending(language_model: nn.Module, implementation: str) -> Iterator[None]:
    """Context with another attention implementation in the language model alone.

    `set_attn_implementation` would change the vision tower too, and a mixed model would not come
    back as it was.
    """
    config = language_model.config
    before = config._attn_implementation
    config._attn_implementation = implementation
    try:
        yield
    finally:
        config._attn_implementation = before
