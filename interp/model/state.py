"""A model's state while it is read: mode, attention implementation, autocast."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from interp.model.families import base_model, held, volatile
from interp.model.parts import ONE_AT_A_TIME


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Context in which the model runs in eval mode without autocast; its state comes back after it.

    In training mode LoRA's dropout makes a replay wrong by 0.3, and gradient checkpointing leaves
    no cache. A caller's autocast, or one that mixed precision has put into the model's forward,
    would round the float32 algebra down, and inference mode would forbid the vector-Jacobian
    products of the readout: all are off inside. Threads wait for one another.
    """
    with ONE_AT_A_TIME, held(model) as is_outermost:
        if is_outermost or _is_disturbed(model):
            with _eval_mode(model):
                yield
        else:
            yield


def _is_disturbed(model: nn.Module) -> bool:
    """Whether somebody undid inside a context what it had set; a look at all modules is dear."""
    device = next(model.parameters()).device.type
    return model.training or torch.is_autocast_enabled(device) or torch.is_inference_mode_enabled()


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    attributes = [(module, name, getattr(module, name)) for module, name in volatile(model)]
    wrapped = {m: m.forward for m in (model, base_model(model)) if "_original_forward" in vars(m)}
    for module in wrapped:
        module.forward = module._original_forward
    for module in training:
        module.training = False
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
        for module in training:
            module.training = True


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
