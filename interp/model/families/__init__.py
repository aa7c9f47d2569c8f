"""Model families: a small file each, the only place that knows modules of Hugging Face models.

A family's file has `locate`, from a model to its `Parts`; `narrow` and `shorten`, which change a
config for models that are made to be measured; and `OLD_KEYS`, prefixes of adapters' keys. A family
whose attention, norms and residual stream follow METHODS.md 1 needs nothing else.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from peft import PeftModel
from torch import nn

from interp.model.families import (
    gemma3,
    idefics3,
    internvl,
    llava_onevision,
    qwen2_5_vl,
    qwen2_vl,
    qwen3_vl,
)
from interp.model.identity import check_whole
from interp.model.parts import Parts

MODEL_FAMILIES: dict[str, ModuleType] = {
    "gemma3": gemma3,
    "idefics3": idefics3,
    "internvl": internvl,
    "llava_onevision": llava_onevision,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen2_vl": qwen2_vl,
    "qwen3_vl": qwen3_vl,
    "qwen3_vl_moe": qwen3_vl,
    "smolvlm": idefics3,
}
"""Their files, by the `model_type` of the config."""

_GATED = "of four layers three are gated delta rules, and a gate stands in front of o_proj"
_SCALED = "a scalar on the whole stream, normed values, and keys and values shared between layers"
_STREAMS = "hyper-connections: several residual streams in place of one"
NOT_EXACT = {
    "gemma4": _SCALED,
    "gemma4_unified": _SCALED,
    "qwen3_5": _GATED,
    "qwen3_5_moe": _GATED,
    "qwen4_exp": _STREAMS,
}
"""Families whose logits Eq. 1 does not add up to, and what of theirs stands in the way."""


def family_file(family: str) -> ModuleType:
    """The file of a family.

    Args:
        family: the `model_type` of a config.

    Raises:
        ValueError: a family without a file, with the reason where one is known.
    """
    if family not in MODEL_FAMILIES:
        why = NOT_EXACT.get(family)
        hint = f"no exact ledger: {why}" if why else "add its file to interp/model/families"
        raise ValueError(
            f"expected an architecture of {sorted(MODEL_FAMILIES)}, got {family!r}; {hint}"
        )
    return MODEL_FAMILIES[family]


def old_keys(model: nn.Module) -> tuple[tuple[str, str], ...]:
    """Prefixes of an adapter's keys as older versions called them, and as they are called today."""
    family = MODEL_FAMILIES.get(base_model(model).config.model_type)
    return family.OLD_KEYS if family else ()


def base_model(model: nn.Module) -> nn.Module:
    """The Hugging Face model inside a peft wrapper, its adapted layers in place."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


_HELD: dict[int, Parts | None] = {}  # by id, of the models that are being read


@contextmanager
def held(model: nn.Module) -> Iterator[bool]:
    """Context in which a model's parts are looked up and checked once; whether it is the outermost.

    Nobody may change its modules inside.
    """
    key = id(model)
    if key in _HELD:
        yield False
        return
    _HELD[key] = None
    try:
        yield True
    finally:
        del _HELD[key]


def is_held(model: nn.Module) -> bool:
    """Whether a model is being read by this package."""
    return id(model) in _HELD


def parts(model: nn.Module) -> Parts:
    """The parts of a model.

    Raises:
        ValueError: an adapter that only prompts or acts on some tokens alone, an unknown
            architecture, a layer that does not attend to the whole context, positions that are
            encoded by the text's length, or weights that are offloaded or sharded.
    """
    found = _HELD.get(id(model))
    if found is None:
        found = _checked(model)
        if id(model) in _HELD:
            _HELD[id(model)] = found
    return found


def _checked(model: nn.Module) -> Parts:
    if isinstance(model, PeftModel):
        _check_adapter(model)
    model = base_model(model)
    family = family_file(model.config.model_type)
    found = family.locate(model)
    _check_config(model.config.text_config, found.has_windows)
    _check_weights(model)
    return found


def _check_adapter(model: PeftModel) -> None:
    if model.active_peft_config.is_prompt_learning:
        raise ValueError(
            f"expected an adapter that changes weights, got {model.active_peft_config.peft_type}, "
            "which adds tokens or cached keys that no image or text has"
        )
    configs = [model.peft_config[name] for name in model.active_adapters]
    if any(getattr(config, "alora_invocation_tokens", None) for config in configs):
        raise ValueError(
            "expected an adapter that acts on every token alike, got an activated LoRA (aLoRA), "
            "which acts behind its invocation tokens alone"
        )


def _check_config(text, has_windows: bool) -> None:
    kinds = set(getattr(text, "layer_types", None) or ())  # without a list, all are full
    known = {"full_attention"} | ({"sliding_attention"} if has_windows else set())
    if kinds - known:
        raise ValueError(
            f"expected full attention in every layer, got {sorted(kinds)}; "
            "set use_sliding_window=False in the text config"
        )
    rope = text.rope_parameters or {}  # of all layers, or by their type
    rope_types = {one.get("rope_type") for one in (rope, *rope.values()) if isinstance(one, dict)}
    if "longrope" in rope_types:
        raise ValueError(
            "expected positions that are encoded alike at every length, got rope_type 'longrope': "
            "a single row would be replayed with the frequencies of a short text"
        )


def _check_weights(model: nn.Module) -> None:
    weights = list(model.named_parameters())
    absent = [name for name, weight in weights if weight.is_meta]
    if absent and len(absent) < len(weights):  # all of them: an outline, without numbers
        raise ValueError(
            f"expected weights in memory, got none for {absent[0]}; load the model without "
            "offloading them to the CPU or the disk"
        )
    check_whole(weights)


def volatile(model: nn.Module) -> tuple[tuple[nn.Module, str], ...]:
    """Attributes that a forward changes and generation needs; none for an unknown architecture."""
    found = _HELD.get(id(model))
    if found is not None:
        return found.volatile
    model = base_model(model)
    family = MODEL_FAMILIES.get(model.config.model_type)
    return family.locate(model).volatile if family else ()
