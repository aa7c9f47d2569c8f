"""TransformerLens as the independent witness (METHODS.md 6, oracle 3).

TransformerBridge rebuilds the model's forward from its own components, with its own hooks and its
own direct logit attribution. It rewrites what it is given, so it gets a throw-away copy, adapters
merged; importing it changes logging, so it is imported only here.
"""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from unittest import mock

import huggingface_hub
import numpy as np
import torch
from einops import rearrange, repeat
from peft import PeftModel
from torch import Tensor

from interp import extract
from interp.model.adapters import merged
from interp.model.families import base_model
from interp.model.state import undisturbed
from interp.model.vlm import VLM
from interp.validate.case import Case, Finding, by_layer, of_sum, relative

LARGEST = 2_000_000_000  # parameters, up to which a copy is made unasked
TWICE = 2  # its forward is another one, with attention of its own: both are rounded
_POST_SCALE = "ln1_post.hook_scale"
_KEPT = ("resid_pre", "attn_out", "mlp_out", "resid_post", "hook_z")


def is_asked(vlm: VLM, witness: bool | None) -> bool:
    """Whether to ask it: as is said, or of small models of the families that it knows.

    Raises:
        ValueError: it is to be asked, and is not installed or does not know the family.
    """
    n_parameters = sum(parameter.numel() for parameter in vlm.model.parameters())
    if not (n_parameters < LARGEST if witness is None else witness):
        return False
    if find_spec("transformer_lens") is None:
        raise ValueError(
            "expected TransformerLens as the witness, got no such package; "
            "pip install 'vlm-interp[witness]', or certify(..., witness=False)"
        )
    with _quietly():
        from transformer_lens.factories.architecture_adapter_factory import (
            SUPPORTED_ARCHITECTURES as KNOWN,
        )
    name = type(base_model(vlm.model)).__name__
    if witness and name not in KNOWN:
        raise ValueError(
            f"expected a model that TransformerLens knows, got {name}; certify(..., witness=False)"
        )
    return name in KNOWN


def copied(vlm: VLM) -> torch.nn.Module:
    """A copy of the model in eval mode, adapters merged.

    Raises:
        NotMerged: an adapter that cannot be.
    """
    model = copy.deepcopy(vlm.model)
    for module in (model, base_model(model)):
        # A trainer may have put a closure in forward's place, which would run the original.
        if "_hf_hook" not in vars(module):
            vars(module).pop("forward", None)
            vars(module).pop("_original_forward", None)
    return (merged(model) if isinstance(model, PeftModel) else model).eval()


def merged_equals_unmerged(cases: list[Case]) -> list[Finding]:
    """The ledger of a model with its adapter against that of a copy with the adapter merged."""
    model, errors = copied(cases[0].vlm), []
    for case in cases:
        ds = extract.ledger(model, case.query.batch, **case.asked)
        direct = case.ledger["direct"].values
        errors.append(np.max(of_sum(ds["direct"].values - direct, direct, axis=(1, 2, 3))))
    return [Finding("merged adapter equals unmerged", float(np.max(errors)), cases[0].vector_bound)]


@torch.no_grad()
def testimony(cases: list[Case]) -> list[Finding]:
    """Compares with TransformerLens on the same model and inputs."""
    findings = []
    bridge = _boot(copied(cases[0].vlm), cases[0].vlm)
    for case in cases:
        batch = dict(case.query.batch)
        ids = batch.pop("input_ids")
        logits, cache = bridge.run_with_cache(ids, names_filter=_is_needed, **batch)
        findings += _components(case, cache)
        findings += _attributions(case, cache, bridge)
        with undisturbed(case.query.model):
            own = case.query.model(**case.query.batch).logits
        gap = relative(logits - own, own)
        findings.append(Finding("TransformerLens: logits", gap, TWICE * case.token_bound))
    return findings


def _is_needed(name: str) -> bool:
    is_outside = name in ("hook_embed", "ln_final.hook_scale")
    return is_outside or (name.startswith("blocks.") and name.endswith((*_KEPT, _POST_SCALE)))


def _components(case: Case, cache) -> list[Finding]:
    """Residual stream, attention and FFN outputs, all tokens, layer by layer."""
    findings = []
    for name, hook_name in (
        ("resid_pre", "hook_resid_pre"),
        ("attn_out", "hook_attn_out"),
        ("ffn_out", "hook_mlp_out"),
        ("resid_post", "hook_resid_post"),
    ):
        errors = [
            relative(cache[f"blocks.{n}.{hook_name}"][0] - value, value)
            for n, value in enumerate(case.stream[name])
        ]
        findings.append(by_layer(f"TransformerLens: {name}", errors, TWICE * case.token_bound))
    return findings


def _behind_heads(case: Case, cache, bridge, row: int) -> Tensor | float:
    """The factors of heads' writes by norms behind attention, which it attributes without."""
    parts = case.query.parts
    if not parts.layers[0].attention_post_norm:
        return 1.0
    factors = [
        (block.ln1_post.weight + parts.gamma_offset) / cache[f"blocks.{n}.{_POST_SCALE}"][0, row]
        for n, block in enumerate(bridge.blocks)
    ]
    return repeat(torch.stack(factors), "l d -> (l h) 1 d", h=parts.n_heads)


def _attributions(case: Case, cache, bridge) -> list[Finding]:
    """Its direct logit attribution of every head, embedding and FFN, in the raw gauge."""
    findings = []
    norm_weight = bridge.ln_final.weight + case.query.parts.gamma_offset
    ds = extract.ledger(case.vlm, case.sample, gauge="raw", detail="full", **case.asked)
    heads = (ds["direct"].sum("source") + ds["value_bias"]).values
    ledger_parts = np.concatenate([ds["embed"].values[:, np.newaxis], ds["ffn"].values], axis=1)
    head_errors, part_errors = [], []
    for k, (row, target) in enumerate(zip(*case.asked.values(), strict=True)):
        # It expects the norm's weight folded into the output embedding; so the components get it.
        stack = cache.stack_head_results(layer=-1, pos_slice=row) * norm_weight
        stack = stack * _behind_heads(case, cache, bridge, row)
        terms = cache.logit_attrs(stack, tokens=target, pos_slice=row)[:, 0].double().cpu().numpy()
        terms = rearrange(terms, "(l h) -> l h", l=len(heads[k]))
        head_errors.append(of_sum(terms - heads[k], heads[k], axis=1))
        stack = cache.decompose_resid(layer=-1, pos_slice=row, mode="all") * norm_weight
        terms = cache.logit_attrs(stack, tokens=target, pos_slice=row)[:, 0].double().cpu().numpy()
        bridge_parts = np.concatenate([terms[:1], terms[2::2]])
        part_errors.append(np.abs(bridge_parts - ledger_parts[k]).max() / case.magnitude[k])
    by_head = np.max(head_errors, axis=0).tolist()
    findings.append(
        by_layer("TransformerLens: attribution of heads", by_head, TWICE * case.vector_bound)
    )
    worst = float(np.max(part_errors))
    findings.append(
        Finding(
            "TransformerLens: attribution of embedding and FFNs", worst, TWICE * case.vector_bound
        )
    )
    return findings


@contextmanager
def _quietly() -> Iterator[None]:
    """No network for a model in memory; logging and random numbers as they were."""
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    try:
        with (
            torch.random.fork_rng(),
            mock.patch.object(huggingface_hub.constants, "HF_HUB_OFFLINE", new=True),
        ):
            yield
    finally:
        root.setLevel(before[0])
        root.handlers[:] = before[1]


def _boot(model: torch.nn.Module, vlm: VLM):
    with _quietly():
        from transformer_lens.model_bridge import TransformerBridge

        return TransformerBridge.boot_transformers(
            vlm.name,
            hf_model=model,
            tokenizer=vlm.processor.tokenizer,
            device=str(model.device),
            dtype=model.dtype,
        )
