"""Adapters that name their base model by content, so that none is put on another model.

`adapter_config.json` of peft names a base by its path or hub id, under which other weights may lie
tomorrow. `base.json` beside it holds the base's fingerprint and the prompt of its training.
"""

import json
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from interp.model import families
from interp.model.state import undisturbed

BASE_FILE = "base.json"
PROMPT_FILE = "prompt.json"  # beside a model that was made of base and adapter


class NotMerged(ValueError):
    """An adapter that cannot be added to the weights of its base."""


def name_base(folder: Path, vlm, **facts) -> None:
    """Writes down beside an adapter which model it was trained on, with which prompt, and facts."""
    content = {"base": vlm.name, "base_hash": vlm.fingerprint, "prompt": vlm.prompt} | facts
    (Path(folder) / BASE_FILE).write_text(json.dumps(content, indent=1) + "\n")
    # peft writes the folder that an embedded name stands for, which is another one elsewhere.
    path = Path(folder) / "adapter_config.json"
    config = json.loads(path.read_text()) | {"base_model_name_or_path": vlm.name}
    path.write_text(json.dumps(config, indent=1) + "\n")


def base_of(folder: str) -> dict | None:
    """The record that `name_base` wrote beside an adapter; None where there is none."""
    path = Path(folder) / BASE_FILE
    return json.loads(path.read_text()) if path.is_file() else None


def check_adapter(source: str) -> None:
    """Refuses a path that is not there, and a folder without an adapter's files.

    Args:
        source: path, or hub id, which is not looked up.

    Raises:
        ValueError: either.
    """
    folder = Path(source)
    is_path = folder.is_absolute() or source.startswith((".", "~"))
    if (folder.is_dir() or is_path) and not list(folder.glob("adapter_*")):
        raise ValueError(
            f"expected an adapter, a folder with adapter_config.json, got {source!r}, "
            f"{'which has none' if folder.is_dir() else 'which is not there'}"
        )


def check_base(folder: str, fingerprint: str) -> None:
    """Raises ValueError if an adapter that names its base was trained on another model."""
    record = base_of(folder)
    if record is not None and record["base_hash"] != fingerprint:
        raise ValueError(
            f"{Path(folder).name}: expected the model it was trained on ({record['base']}, weights "
            f"{record['base_hash']}), got weights {fingerprint}; load that model"
        )


def keep_prompt(folder: Path, prompt: str) -> None:
    """Writes down beside a model with which prompt it was trained."""
    (Path(folder) / PROMPT_FILE).write_text(json.dumps({"prompt": prompt}) + "\n")


def prompt_of(folder: str) -> str | None:
    """The prompt that `keep_prompt` wrote; None where there is none."""
    path = Path(folder) / PROMPT_FILE
    return json.loads(path.read_text())["prompt"] if path.is_file() else None


def merged(model: PeftModel) -> nn.Module:
    """The model with its adapter added to the weights, which gives the same logits; in place.

    Weights that an adapted module shares with another (tied embeddings) are separated first, or
    adding to the one would change the other.

    Raises:
        NotMerged: peft cannot merge this kind, or the merged model has other logits.
    """
    before = _logits(model)
    _separate(model)
    try:
        whole = model.merge_and_unload()
    except (RuntimeError, NotImplementedError, ValueError, AttributeError) as error:
        raise NotMerged(
            f"expected an adapter that can be merged, got {str(error).splitlines()[0]}"
        ) from error
    error = float((_logits(whole) - before).float().norm() / before.float().norm())
    bound = 1e-4 if before.dtype in (torch.float32, torch.float64) else 5e-2
    if not error <= bound:
        raise NotMerged(
            f"expected a merged model with the adapter's logits, got a difference of {error:.2g} "
            f"of them (bound {bound:g})"
        )
    return whole


@torch.no_grad()
def _logits(model: nn.Module) -> Tensor:
    """Logits of a short text without an image."""
    image_token_id = families.parts(model).image_token_id
    ids = [token_id for token_id in range(20, 40) if token_id != image_token_id]
    with undisturbed(model):
        return model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits


def _separate(model: PeftModel) -> None:
    """Gives an adapted module weights of its own where it shares them."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    modules = dict(model.named_modules(remove_duplicate=False))
    is_shared = False
    for shared in names.values():
        adapted = [name for name in shared if _is_adapted(name, modules)]
        for name in adapted if len(shared) > 1 else ():
            owner, _, own = name.rpartition(".")
            parameter = getattr(modules[owner], own)
            setattr(modules[owner], own, nn.Parameter(parameter.detach().clone(), False))
            is_shared = True
    if is_shared:
        config = model.get_base_model().config
        config.tie_word_embeddings = config.text_config.tie_word_embeddings = False


def _is_adapted(name: str, modules: dict[str, nn.Module]) -> bool:
    """Whether a parameter lies inside a module with an adapter."""
    parts = name.split(".")
    around = (modules.get(".".join(parts[:k])) for k in range(1, len(parts)))
    return any(isinstance(one, BaseTunerLayer | AuxiliaryTrainingWrapper) for one in around)
