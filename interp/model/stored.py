"""Loading without loss: every tensor of a checkpoint or an adapter in its place, by name.

transformers fills what is missing with random numbers and peft leaves an adapter without effect,
each with a warning; here both are errors. Keys of older versions are renamed where all fit then.
"""

import json
import logging
import warnings
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText
from transformers.utils import cached_file

from interp.model import families

log = logging.getLogger("interp.loading")

SHOWN = 3  # names that an error tells
ADAPTER_FILE = "adapter_model.safetensors"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


def load_weights(source: str, dtype, **options) -> nn.Module:
    """A model with the weights of a checkpoint in safetensors, every one of them.

    Args:
        source: folder or hub id.
        dtype: "auto" for the checkpoint's, or another.
        options: for `from_pretrained`.

    Raises:
        ValueError: a pickled checkpoint, which can run code; or one whose tensors are missing,
            unexpected, of another shape, or rounded to the dtype that its config names; or options
            that need a package which is not there.
    """
    folder = Path(source)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        raise ValueError(
            f"{source}: expected weights as *.safetensors, got {pickles or 'none'}; "
            "save the model again with save_pretrained"
        )
    try:
        model, info = AutoModelForImageTextToText.from_pretrained(
            source,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below, in one line
            **options,
        )
    except ImportError as error:  # by transformers, for a package that it finds no trace of
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{source}: expected the packages of {options}, got: {reason}") from error
    shapes = [f"{name} {tuple(a)} for {tuple(b)}" for name, a, b in info["mismatched_keys"]]
    _refuse(source, "a tensor for every weight", "none for", info["missing_keys"])
    _refuse(source, "no tensor but the model's", "also", info["unexpected_keys"])
    _refuse(source, "tensors of the weights' shapes", "others:", shapes)
    if info["error_msgs"]:
        raise ValueError(f"{source}: expected a checkpoint, got {info['error_msgs'][0]}")
    if dtype == "auto":
        _refuse_rounding(source, model.dtype, options.get("revision"))
    return model


def _refuse(source: str, expected: str, got: str, names) -> None:
    if names:
        names = sorted(names)
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        raise ValueError(
            f"{source}: expected {expected}, got {got} {', '.join(names[:SHOWN])}{more}"
        )


def _refuse_rounding(source: str, dtype: torch.dtype, revision: str | None) -> None:
    """Raises ValueError for floating-point tensors that the model's dtype cannot hold."""
    name = str(dtype).removeprefix("torch.")
    for file in _files(source, revision):
        with safe_open(file, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - it is no dictionary
                stored = _DTYPES.get(tensors.get_slice(key).get_dtype())
                if stored is not None and torch.promote_types(stored, dtype) != dtype:
                    raise ValueError(
                        f"{source}: expected tensors that {name} holds, as its config says, got "
                        f"{str(stored).removeprefix('torch.')} for {key}; name a dtype"
                    )


def _files(source: str, revision: str | None) -> list[Path]:
    """The checkpoint's files, in a folder or where the hub's client keeps them."""
    config = cached_file(source, "config.json", revision=revision)
    folder = Path(config).parent
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return [
            folder / name
            for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))
        ]
    return sorted(folder.glob("model*.safetensors"))


def load_adapter(model: nn.Module, name: str, folder: str) -> PeftModel:
    """The model with an adapter on it, every tensor of which is in its place.

    Args:
        model: the base.
        name: of the adapter, for messages.
        folder: its folder, or its hub id.

    Raises:
        ValueError: an adapter that only prompts; or one with tensors missing, unexpected, of
            another shape or rounded.
    """
    if Path(folder).is_dir() and not (Path(folder) / ADAPTER_FILE).is_file():
        raise ValueError(
            f"{name}: expected {ADAPTER_FILE} in the folder, got "
            f"{sorted(path.name for path in Path(folder).iterdir())}; save it again with "
            "save_pretrained"
        )
    config = PeftConfig.from_pretrained(folder)
    if config.is_prompt_learning:
        raise ValueError(
            f"{name}: expected an adapter that changes weights, got {config.peft_type.value}, "
            "which adds tokens or cached keys that no image or text has"
        )
    stored = load_file(cached_file(folder, ADAPTER_FILE))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Found missing adapter keys")
        try:
            adapted = PeftModel.from_pretrained(model, folder)
        except (RuntimeError, KeyError) as error:  # peft's own message has a line per tensor
            reason = next((line for line in str(error).splitlines() if "size mismatch" in line), "")
            raise ValueError(
                f"{name}: expected tensors of the shapes that its adapter_config.json says, got "
                f"{(reason or str(error).splitlines()[0]).strip()[:200]}"
            ) from error
    _check_places(adapted, name, stored)
    return adapted


def _check_places(adapted: PeftModel, name: str, stored: dict[str, Tensor]) -> None:
    """Raises ValueError unless the model has every stored tensor, as stored; renames old keys."""
    placed = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    base = adapted.state_dict()
    # What peft saves with an adapter on embeddings: rows of the base, which have to be the base's.
    extra = {key for key in set(stored) - set(placed) if _is_base(key, stored[key], base)}
    stored = {key: tensor for key, tensor in stored.items() if key not in extra}
    if set(stored) != set(placed):
        old_keys = families.old_keys(adapted)
        renamed = {_renamed(key, old_keys): tensor for key, tensor in stored.items()}
        if set(renamed) == set(placed) and len(renamed) == len(stored):
            log.warning("%s: %d keys of an older transformers renamed", name, len(stored))
            set_peft_model_state_dict(adapted, renamed)
            placed = get_peft_model_state_dict(adapted, save_embedding_layers=False)
            stored = renamed
    _refuse(name, "no tensor but the adapter's", "also", set(stored) - set(placed))
    _refuse(name, "a tensor for every weight of the adapter", "none for", set(placed) - set(stored))
    rounded = [
        key
        for key, tensor in stored.items()
        if placed[key].shape != tensor.shape
        or not torch.equal(placed[key].to(tensor.dtype).cpu(), tensor)
    ]
    _refuse(name, "the adapter's tensors as they are stored", "others for", rounded)


def _renamed(key: str, old_keys: tuple[tuple[str, str], ...]) -> str:
    """A key as the installed transformers calls it: the first prefix that fits is exchanged."""
    for old, new in old_keys:
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key


def _is_base(key: str, tensor: Tensor, base: dict[str, Tensor]) -> bool:
    """Whether a tensor beside an adapter's own is the base's, and equal to it."""
    for name in (key, key.replace(".base_layer", ""), key.replace(".weight", ".base_layer.weight")):
        if name in base:
            return torch.equal(base[name].to(tensor.dtype).cpu(), tensor)
    return False
