"""Random models with the 3B's depth, heads and vocabulary, narrow enough for a CPU.

They stand on the device that TEST_DEVICE names.
"""

import os
from unittest import mock

import torch

import interp
from analyses.benchmarks import models
from interp.inputs import prompts
from interp.model.vlm import VLM
from tests.support.teaching import overfit

LAYERS, HEADS, KV_HEADS, VOCABULARY = 36, 16, 2, 151936
KINDS = ("initial", "large", "with a mean")
DEVICE = os.environ.get("TEST_DEVICE", "cpu")
VISUAL = 100  # visual tokens of an image, at most


def make(seed: int, kind: str, dtype: str = "float32", hidden: int = 256) -> VLM:
    """A random model as a VLM with the embedded processor.

    Args:
        seed: of the weights.
        kind: "initial", as training begins; "large", four times that with biases and uneven norms,
            which amplifies rounding from layer to layer; "with a mean", where all rows of the
            output embedding share one, as after training.
        dtype: of the weights.
        hidden: width; a multiple of 64.
    """
    shape = (HEADS, KV_HEADS, hidden, hidden * 43 // 8, VOCABULARY, LAYERS, True)
    setting = models.Setting("real", LAYERS, "cpu", "float32", threads=1)
    with mock.patch.dict(models.SHAPES, {"real": shape}):
        model = models.make_model(setting)
    generator = torch.Generator().manual_seed(seed)
    scale = 0.02 if kind == "initial" else 0.08
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                is_embedding = "embed_tokens" in name
                std = 0.02 if is_embedding else scale
                mean = 0.01 if is_embedding and kind == "with a mean" else 0.0
                parameter.normal_(mean, std, generator=generator)
            elif kind != "initial" and name.endswith("bias") and "self_attn" in name:
                parameter.normal_(0, 0.5, generator=generator)
            elif kind != "initial" and "norm" in name:
                parameter.normal_(1, 0.1, generator=generator)
    return models.as_vlm(model.to(DEVICE, getattr(torch, dtype)), VISUAL)


def taught(seed: int, n_steps: int = 120) -> VLM:
    """A random model overfitted in float32 on the texts of eight scenes, until it says them."""
    vlm = make(seed, "initial")
    samples = interp.load_samples("digits", split="train", limit=8, seed=seed)
    texts = [prompts.teacher_forced(vlm.processor, sample, None) for sample in samples]
    model = vlm.model.train()
    trained = [p for name, p in model.named_parameters() if "visual" not in name]

    def loss_of(text):
        batch = text.batch.to(DEVICE)
        ids = batch["input_ids"][0, text.tokens.targets()[0] :]
        logits = model(**batch, logits_to_keep=len(ids) + 1).logits[0, :-1]
        return torch.nn.functional.cross_entropy(logits, ids)

    loss = overfit(loss_of, texts, trained, n_steps=n_steps, rate=1e-3)
    if loss > 1:
        raise ValueError(f"expected a text known by heart, got a loss of {loss:.2f}")
    model.eval()
    return vlm
