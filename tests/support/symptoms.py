"""Small things that the tests of reported symptoms share."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import torch
from PIL import Image

import interp
from interp.inputs import prompts

TWO = {"positions": [50, 55]}


def png(image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, options.pop("format", "PNG"), **options)
    return buffer.getvalue()


def colour(image, at=(20, 20)) -> tuple:
    return image.getpixel(at)


def raw_logits(vlm, sample, rows):
    """Centred logits of the tokens that follow `rows`, by the model's own forward."""
    batch = prompts.teacher_forced(vlm.processor, sample, None).batch
    with torch.no_grad():
        logits = vlm.model(**batch).logits[0].double()
    ids = batch["input_ids"][0]
    return np.array([float(logits[r, ids[r + 1]] - logits[r].mean()) for r in rows])


def assert_exact(vlm, sample, **options):
    """Parts sum to the logit, and the logit is the model's own."""
    ds = interp.extract.ledger(vlm, sample, detail="summary", **TWO, **options)
    assert float(np.abs(ds.remainder / ds.magnitude).max()) < 1e-5
    np.testing.assert_allclose(ds.logit, raw_logits(vlm, sample, TWO["positions"]), atol=2e-4)
    return ds


def adapted(vlm, config, scale=0.05, seed=0, name="default"):
    model = peft.get_peft_model(vlm.model, config, adapter_name=name).eval()
    shake(model, scale, seed)
    return replace(vlm, model=model)


def shake(model, scale=0.05, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "lora_" in parameter_name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


def lora(**options):
    return peft.LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"]} | options)


def write_rows(folder: Path, rows, split="test", **image_options) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "images").mkdir(exist_ok=True)
    Image.new("RGB", (56, 56), "red").save(folder / "images" / "a.png")
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return f"jsonl:{folder}"


ROW = {"id": "a", "image": "images/a.png", "question": "What colour?", "answer": "red"}


def hf_rows(n=2):
    content = png(Image.new("RGB", (56, 56), "red"))
    return {
        "image": [{"bytes": content, "path": None}] * n,
        "question": [f"q{k}" for k in range(n)],
        "answer": [f"a{k}" for k in range(n)],
    }
