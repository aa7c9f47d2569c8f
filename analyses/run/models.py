"""Models as the command line names them, certified before they are measured."""

import json
import logging
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText
from transformers.utils import find_adapter_config_file
from transformers.utils import logging as transformers_logging

import interp
from analyses.options import Command
from analyses.run.processes import this_device
from interp.loading import family_of, resolve
from interp.model.families import base_model
from interp.model.identity import fingerprint
from interp.model.vlm import VLM
from interp.validate import certify

log = logging.getLogger("extraction")


def load(options: Command, model: str, adapter: str | None, prompt: str | None = None) -> VLM:
    """A model as the command line says.

    Args:
        options: of the command.
        model: its name.
        adapter: to put on it.
        prompt: where the command does not name one.
    """
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()  # of tensors, in the midst of a log
    log.info("loading %s%s", model, f" with {adapter}" if adapter else "")
    revision = options.revision if model == getattr(options, "model", None) else None
    return interp.load_model(
        model,
        adapter=adapter,
        revision=revision,
        prompt=options.prompt or prompt,
        device=this_device(options.device),
        dtype=options.dtype,
        attn_implementation=options.attn_implementation,
        min_pixels=options.min_pixels,
        max_pixels=options.max_pixels,
    )


def compared(options: Command, first: VLM) -> VLM:
    """The model of --compare, under the first one's prompt: an adapter on it, or another model.

    Raises:
        ValueError: neither a model nor an adapter, or a model with other tokens.
    """
    if is_adapter(options.compare):
        return load(options, options.model, options.compare, first.prompt)
    second = load(options, options.compare, None, first.prompt)
    if second.processor.tokenizer.get_vocab() != first.processor.tokenizer.get_vocab():
        raise ValueError(
            f"expected a model with the first one's tokens, got {options.compare}; compare an "
            "adapter or a fine-tuned copy"
        )
    return second


def is_adapter(name: str) -> bool:
    """Whether a name is an adapter's, or a model's.

    Raises:
        ValueError: neither.
    """
    source = resolve(name)[0]
    if Path(source).is_absolute() and not Path(source).exists():
        raise ValueError(f"expected a model or an adapter to compare with, got {name}: not there")
    try:
        if find_adapter_config_file(source) is not None:
            return True
        family_of(name, source, {})
    except (OSError, ValueError) as error:
        raise ValueError(f"expected a model or an adapter to compare with: {error}") from error
    return False


def certificate(vlm: VLM, options: Command) -> dict:
    """The model's certificate as a dict; raises NotCertified where an oracle fails."""
    log.info("certifying the extractor on %s", vlm.adapter or vlm.name)
    return json.loads(certify(vlm, witness=options.witness).to_json())


def code_version() -> str:
    """The package's version, with the commit where the scripts are in a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"{version('vlm-interp')} {process.stdout.strip()}".strip()


def random_weights(vlm: VLM, seed: int) -> VLM:
    """The same architecture with weights drawn anew."""
    torch.manual_seed(seed)
    config = base_model(vlm.model).config
    model = AutoModelForImageTextToText.from_config(config).to(vlm.model.dtype).to(vlm.device)
    return replace(vlm, model=model.eval(), name="random weights", fingerprint=fingerprint(model))
