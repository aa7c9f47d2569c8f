"""Loading: models with their processors from the hub, a folder or the package; safetensors only.

A loaded model has passed the self-check: replays read the live tensors of this very model.
"""

import copy
from pathlib import Path
from types import ModuleType

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from interp.capture.prefill import Prefill, prefill
from interp.capture.replay import Replay, replay
from interp.model import families
from interp.model.adapters import base_of, check_adapter, check_base, prompt_of
from interp.model.identity import fingerprint
from interp.model.parts import Parts
from interp.model.stored import load_adapter, load_weights
from interp.model.vlm import PROMPTS, VLM

DTYPES = ("auto", "float32", "bfloat16", "float64", "float16")
CHECKPOINTS = Path(__file__).parent / "checkpoints"


@torch.inference_mode(mode=False)  # the self-check asks for gradients
def load_model(
    name: str | Path,
    *,
    adapter: str | Path | None = None,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    attn_implementation: str = "sdpa",
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    prompt: str | None = None,
) -> VLM:
    """A vision-language model with its processor, in eval mode and self-checked.

    Args:
        name: embedded name ("tiny"), hub id, or folder of a checkpoint in safetensors; or of an
            adapter that `train.grpo` made, which names its base: both are loaded.
        adapter: embedded name, folder or hub id of a peft adapter to put on it.
        revision: of the hub id.
        dtype: "auto" (the checkpoint's), "float32", "bfloat16", "float16" or "float64".
        device: a GPU where there is one, by default.
        attn_implementation: "sdpa", "eager" or "flash_attention_2"; extraction works with each.
        min_pixels, max_pixels: bounds between which the image processor resizes; refused where it
            cuts images into tiles of one size.
        prompt: "think", the system prompt of Saliency-R1, or "plain", the chat template's own;
            default that of an adapter's or merged model's training, "plain" for embedded models,
            which think unasked, and "think" otherwise.

    Raises:
        ValueError: unknown architecture, dtype or prompt, no GPU where one is named, weights not in
            safetensors, tensors of a checkpoint or an adapter that are missing, unexpected, of
            another shape or rounded, no chat template, sliding-window layers, a non-linear adapter,
            one that was trained on other weights, or a failed self-check.
    """
    _check_place(dtype, device)
    name, adapter = str(name), None if adapter is None else str(adapter)
    source, embedded = resolve(name)
    record = base_of(source)
    if record is not None:  # the name is an adapter's, which says what it was trained on and how
        if adapter is not None:
            raise ValueError(f"expected one adapter, got {name!r}, which is one, and {adapter!r}")
        adapter, name, prompt = name, record["base"], prompt or record["prompt"]
        min_pixels = record.get("min_pixels") if min_pixels is None else min_pixels
        max_pixels = record.get("max_pixels") if max_pixels is None else max_pixels
        source, embedded = resolve(name)
    if adapter is not None:
        check_adapter(resolve(adapter)[0])
    prompt = prompt or prompt_of(source) or ("plain" if embedded else "think")
    if prompt not in PROMPTS:
        raise ValueError(f"expected a prompt of {sorted(PROMPTS)}, got {prompt!r}")
    options = {"revision": revision} if revision else {}
    family_of(name, source, options)
    processor = _processor(name, source, options)
    _limit_pixels(processor.image_processor, min_pixels, max_pixels)
    model = load_weights(source, dtype=dtype, attn_implementation=attn_implementation, **options)
    weights = fingerprint(model)
    if adapter is not None:
        _check_base(adapter, source, weights, model, dtype, options)
        model = load_adapter(model, adapter, resolve(adapter)[0])
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    vlm = VLM(
        model=model.eval().to(device),
        processor=processor,
        name=name,
        prompt=prompt,
        fingerprint=weights,
        revision=revision or "",
        adapter=adapter or "",
    )
    self_check(vlm.model)
    return vlm


@torch.inference_mode(mode=False)  # the self-check asks for gradients
def wrap(model, processor, *, prompt: str = "plain", name: str = "") -> VLM:
    """A model and a processor that somebody already holds, self-checked, as a `VLM`.

    Neither is changed; the model's mode, attention and adapters stay what they are.

    Args:
        model: a Hugging Face model of a supported family, with adapters or without.
        processor: the model's, with a chat template.
        prompt: "plain", the chat template's own, or "think", the system prompt of Saliency-R1.
        name: for attributes and pages; the checkpoint's by default.

    Raises:
        ValueError: an unknown architecture or prompt, no chat template, or a failed self-check.
    """
    if prompt not in PROMPTS:
        raise ValueError(f"expected a prompt of {sorted(PROMPTS)}, got {prompt!r}")
    if not isinstance(model, nn.Module):
        raise ValueError(f"expected a model and its processor, got {type(model).__name__} first")
    families.parts(model)
    name = name or model.config._name_or_path or type(families.base_model(model)).__name__
    vlm = VLM(model, _with_template(processor, name), name, prompt, fingerprint(model))
    self_check(model)
    return vlm


def _with_template(processor, name: str):
    """The processor; a copy where its tokenizer alone has a chat template."""
    if getattr(processor, "tokenizer", None) is None:
        raise ValueError(
            f"{name}: expected a processor for images and text, got {type(processor).__name__}"
        )
    if processor.chat_template:
        return processor
    if not processor.tokenizer.chat_template:
        raise ValueError(
            f"{name}: expected a chat template in chat_template.jinja, chat_template.json or "
            "tokenizer_config.json, got none; copy the one of the model it was trained from"
        )
    processor = copy.copy(processor)
    processor.chat_template = processor.tokenizer.chat_template
    return processor


def _processor(name: str, source: str, options: dict):
    """The processor of a checkpoint, its chat template from whichever file has one."""
    processor = AutoProcessor.from_pretrained(source, **options)
    processor.tokenizer.padding_side = "left"
    return _with_template(processor, name)


def _check_place(dtype, device) -> None:
    if dtype not in (*DTYPES, *(getattr(torch, name) for name in DTYPES[1:])):
        raise ValueError(f"expected a dtype of {DTYPES}, got {dtype!r}")
    if device is None:
        return
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:  # by the backend that lacks it
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"expected a device that this machine has, got {str(device)!r}: {reason}; leave it out "
            "for a GPU where there is one"
        ) from error


def _check_base(adapter: str, source: str, weights: str, model, dtype, options: dict) -> None:
    """An adapter's base is known by its weights as stored: in another dtype they are read again."""
    folder = resolve(adapter)[0]
    if dtype != "auto" and base_of(folder) is not None:
        attention = model.config._attn_implementation
        weights = fingerprint(
            load_weights(source, dtype="auto", attn_implementation=attention, **options)
        )
    check_base(folder, weights)


def _limit_pixels(image_processor, min_pixels: int | None, max_pixels: int | None) -> None:
    if min_pixels is None and max_pixels is None:
        return
    if not hasattr(image_processor, "merge_size"):  # tiles are of one size, and as many as fit
        raise ValueError(
            "expected min_pixels and max_pixels of a model whose images keep their size, got "
            f"{type(image_processor).__name__}, which cuts them into tiles; leave both out"
        )
    size = dict(image_processor.size)
    limits = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    size.update({key: value for key, value in limits.items() if value is not None})
    if size["shortest_edge"] > size["longest_edge"]:
        raise ValueError(
            f"expected min_pixels <= max_pixels, got {size['shortest_edge']} and "
            f"{size['longest_edge']}; pass both"
        )
    image_processor.size = type(image_processor.size)(**size)


def family_of(name: str, source: str, options: dict) -> ModuleType:
    """The file of a checkpoint's family, by its config alone.

    Args:
        name: for the message.
        source: hub id or folder.
        options: of `from_pretrained`.

    Raises:
        ValueError: nothing there, or a family that is not supported.
    """
    try:
        family = AutoConfig.from_pretrained(source, **options).model_type
    except OSError as error:
        embedded = sorted(path.name for path in CHECKPOINTS.iterdir() if path.is_dir())
        raise ValueError(
            f"expected a hub id, a folder or one of {embedded}, got {name!r}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    try:
        return families.family_file(family)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def resolve(name: str | Path) -> tuple[str, bool]:
    """The folder of an embedded name, or the hub id or folder as given; and if it is embedded."""
    embedded = CHECKPOINTS / str(name)
    if embedded.is_dir() and "/" not in str(name):
        return str(embedded), True
    return str(name), False


def outline(
    name: str | Path,
    *,
    is_narrow: bool = False,
    depth: tuple[int, int] | None = None,
    dtype: str = "auto",
    pixels: tuple[int | None, int | None] = (None, None),
) -> VLM:
    """A model by its config and processor alone, for what depends on sizes and not on weights.

    The whole model is on torch's device "meta", which has shapes and no numbers.

    Args:
        name: as for `load_model`.
        is_narrow: layers, heads and vocabulary of the model, random weights, and as little width as
            can be, so that every array which is extracted has its true shape.
        depth: the model's width and dtype with so many layers of text and of the vision tower, and
            random weights.
        dtype: as for `load_model`; a narrow model has float32.
        pixels: bounds between which the image processor resizes, as `load_model` takes them.
    """
    source, embedded = resolve(name)
    record = base_of(source)
    if record is not None:
        source, embedded = resolve(record["base"])
        trained = (record.get("min_pixels"), record.get("max_pixels"))
        pixels = tuple(b if a is None else a for a, b in zip(pixels, trained, strict=True))
    family = family_of(str(name), source, {})
    config = AutoConfig.from_pretrained(source)
    if is_narrow:
        family.narrow(config)
    if depth is not None:
        family.shorten(config, *depth)
    # Some configs name the dtype for the text alone.
    own = config.dtype or config.text_config.dtype
    chosen = own if dtype == "auto" else getattr(torch, dtype)
    with torch.device("cpu" if is_narrow or depth else "meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=chosen)
    if is_narrow:
        model = model.float()
    processor = _processor(str(name), source, {})
    _limit_pixels(processor.image_processor, *pixels)
    prompt = record["prompt"] if record else "plain" if embedded else "think"
    return VLM(model.eval(), processor, str(name), prompt, "outline")


def self_check(model: nn.Module) -> None:
    """Proves on a short text that replays read the live tensors of this very model.

    The attention rows have the right shape and sum to 1; the replay gives the prefill's logits; and
    every layer's cached values move the result (by their gradient, which is nowhere all zero).

    Raises:
        ValueError: a check failed, naming it; or an adapter that is not linear.
    """
    parts = families.parts(model)
    device = next(model.parameters()).device
    ids = torch.tensor([[i for i in range(20, 30) if i != parts.image_token_id][:8]], device=device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    rows = torch.tensor([3, 7], device=device)
    context = prefill(model, batch, rows)
    for values in context.values:
        values.requires_grad_()
    with torch.enable_grad():
        played = replay(model, context, rows)
        moved = torch.autograd.grad(played.final.float().square().sum(), context.values)
    _check_rows(parts, played, n_tokens=ids.shape[1])
    _check_drift(parts, context, played)
    dead = [layer for layer, gradient in enumerate(moved) if not gradient.abs().sum() > 0]
    if dead:
        raise ValueError(
            f"self-check: expected cached values to move the result, not in layers {dead}"
        )


def _check_rows(parts: Parts, played: Replay, n_tokens: int) -> None:
    expected = (1, 2, parts.n_heads, n_tokens)
    for layer, rows in enumerate(played.weights):
        if tuple(rows.shape) != expected or (rows.sum(-1) - 1).abs().max() > 1e-5:
            raise ValueError(
                f"self-check: expected attention rows {expected} summing to 1 in layer {layer}, "
                f"got {tuple(rows.shape)} and sums {rows.sum(-1).flatten().tolist()}"
            )


def _check_drift(parts: Parts, context: Prefill, played: Replay) -> None:
    with torch.no_grad():
        again = parts.output_embedding(parts.final_norm(played.final[0]))
    drift = (again - context.logits).float().norm() / context.logits.float().norm()
    limit = 1e-4 if again.dtype in (torch.float32, torch.float64) else 5e-2
    if not drift <= limit:
        raise ValueError(
            f"self-check: expected the replay to give the prefill's logits to {limit}, got a "
            f"relative difference of {float(drift):.2g}; is the model changed by hooks of its own?"
        )
