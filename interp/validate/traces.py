"""Extraction leaves no trace, and what it reads is live (METHODS.md 6, oracle 8)."""

import torch

from interp import extract
from interp.capture.prefill import prefill
from interp.capture.replay import replay
from interp.model import families
from interp.model.families import base_model
from interp.validate.case import Case, Finding, by_layer


def liveness(case: Case) -> list[Finding]:
    """Changing what was captured changes the result, in every layer."""
    query = case.query
    context = prefill(query.model, query.batch, query.rows)
    for tensor in (*context.keys, *context.values):
        tensor.requires_grad_()
    with torch.enable_grad():
        played = replay(query.model, context, query.rows)
        result = played.final.float().square().sum()
        captured = {
            "keys": context.keys,
            "values": context.values,
            "attention outputs": played.attention,
            "FFN outputs": played.ffn,
        }
        all_tensors = [tensor for tensors in captured.values() for tensor in tensors]
        gradients = iter(torch.autograd.grad(result, all_tensors))
    findings = []
    for name, tensors in captured.items():
        dead = [0.0 if float(next(gradients).abs().sum()) > 0 else 1.0 for _ in tensors]
        findings.append(by_layer(f"captured {name} move the result", dead, 0.0))
    return findings


def unchanged(case: Case) -> list[Finding]:
    """Training modes, gradients, RNG, rope offset, hooks and attention implementations stay."""
    model = case.query.model
    modes = [module.training for module in model.modules()]
    before = _state(model)
    model.train()
    try:
        during = [module.training for module in model.modules()]
        extract.effects(case.vlm, case.sample, **case.asked)
        extract.first_order(case.vlm, case.sample, n_nodes=2, **case.asked)
        n_changed = sum(a != b for a, b in zip(_state(model), before, strict=True))
        n_changed += during != [module.training for module in model.modules()]
    finally:
        for module, mode in zip(model.modules(), modes, strict=True):
            module.training = mode
    return [Finding("extraction leaves the model as it was", float(n_changed), 0.0)]


def _state(model) -> list:
    """Everything about a model that a caller would notice."""
    base, parts = base_model(model), families.parts(model)
    tensors = [t for t in model.parameters() if not t.is_inference()]
    gradients = [t.grad for t in tensors if t.grad is not None]
    return [
        torch.get_rng_state().tolist(),
        [state.tolist() for state in torch.cuda.get_rng_state_all()],
        [p.requires_grad for p in model.parameters()],
        [(t.data_ptr(), t._version) for t in [*tensors, *gradients]],
        base.config._attn_implementation,
        parts.language_model.config._attn_implementation,
        parts.vision_tower.config._attn_implementation,
        [id(getattr(module, name)) for module, name in parts.volatile],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
    ]
