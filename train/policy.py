"""The model that is trained, and its LoRA adapter: options that both commands share."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from peft import LoraConfig

from interp.loading import load_model, resolve
from interp.model.adapters import name_base
from interp.model.identity import fingerprint
from interp.model.stored import load_weights
from interp.model.vlm import VLM


@dataclass
class Policy:
    """The model to train, and its adapter."""

    model_name_or_path: str = field(metadata={"help": "embedded name, hub id or folder"})
    dtype: str = field(default="auto", metadata={"help": "of the weights"})
    attn_implementation: str = field(default="sdpa", metadata={"help": "as transformers has it"})
    min_pixels: int | None = field(default=None, metadata={"help": "of a resized image"})
    max_pixels: int | None = field(default=None, metadata={"help": "of a resized image"})
    prompt: str | None = field(default=None, metadata={"help": "plain, or think (the paper's)"})
    lora_r: int = field(default=16, metadata={"help": "rank of the adapter; 0 trains all weights"})
    lora_alpha: int = field(default=32, metadata={"help": "its scale, times the rank"})
    lora_dropout: float = field(default=0.0, metadata={"help": "of its input while training"})
    lora_targets: list[str] = field(
        default_factory=lambda: ["q_proj", "v_proj"],
        metadata={"help": "layers of the language model that get one, by name"},
    )


def load_policy(policy: Policy, checkpoint: str | None = None) -> VLM:
    """The model on the CPU; the trainer puts every process's copy where it belongs.

    Args:
        policy: which model.
        checkpoint: of a full fine-tuning, to take the weights from.

    Raises:
        ValueError: as `interp.load_model`; an adapter in place of a model.
    """
    vlm = load_model(
        checkpoint or policy.model_name_or_path,
        dtype=policy.dtype,
        device="cpu",
        attn_implementation=policy.attn_implementation,
        min_pixels=policy.min_pixels,
        max_pixels=policy.max_pixels,
        prompt=policy.prompt,
    )
    if vlm.adapter:
        raise ValueError(
            f"expected a model to train, got the adapter {policy.model_name_or_path}; "
            "merge it first: python -m train.merge ADAPTER --out FOLDER"
        )
    return vlm


def name_adapter(folder: Path, vlm: VLM, policy: Policy, **facts) -> None:
    """Writes down beside a trained adapter what it was trained on: the base as it is stored.

    Args:
        folder: of the adapter.
        vlm: as `load_policy` gave it.
        policy: as `load_policy` took it.
        facts: more of the training, for whoever reads the adapter.
    """
    if policy.dtype != "auto":  # the same weights in another dtype have another hash
        stored = load_weights(resolve(policy.model_name_or_path)[0], dtype="auto")
        vlm = replace(vlm, fingerprint=fingerprint(stored))
    pixels = {"min_pixels": policy.min_pixels, "max_pixels": policy.max_pixels}
    name_base(folder, vlm, **facts, **pixels)


def lora(policy: Policy) -> LoraConfig | None:
    """The adapter's configuration, for layers of the language model alone; None without one."""
    if policy.lora_r == 0:
        return None
    return LoraConfig(
        r=policy.lora_r,
        lora_alpha=policy.lora_alpha,
        lora_dropout=policy.lora_dropout,
        # The vision tower has layers of the same names.
        target_modules=rf".*language_model.*\.({'|'.join(policy.lora_targets)})",
        task_type="CAUSAL_LM",
    )
