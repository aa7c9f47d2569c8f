"""Trained positive controls of the verdict: tiny with one path closed at answer rows.

    python -m train.sft --config train/configs/tiny-blind-rows.yaml     # no edge to the image
    python -m train.sft --config train/configs/tiny-no-ffn-rows.yaml    # no FFN

METHODS 3.6 says what has to come out.

A path is closed by weights, so that a control is a checkpoint as any other and no tool has to know
of it. The rows from which an answer's tokens are predicted are known by their own token (the end of
a tag, a digit, a colour without a space before it), and every row of such a token, in question and
thinking too, carries a flag in a dimension of the residual stream that nobody writes; visual ones
carry one in another. In one rotary pair of every head, the slowest, the two take so much from the
score that the softmax gives exactly 0. The other path is closed where the first flag shuts every
gate of the FFNs, which then write exactly 0. All other weights learn around it.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from interp.data.digits.drawing import COLORS
from interp.model import families
from interp.model.parts import Layer, Parts

PATHS = ("image", "ffn")
FLAG = 2.0  # of the size that tiny's residual stream has
STRENGTH = 1e3  # of a flag, in a score or a gate: past what float32 tells from 0 at tiny's norms
ROW, IMAGE = -1, -2  # dimensions of the residual stream

Held = tuple[nn.Parameter, tuple, float]
"""A parameter, an index into it, and the value that stays there."""


class ClosedPath(TrainerCallback):
    """Closes a path when training begins, and keeps it closed after every step.

    Args:
        path: of `PATHS`: the answer rows' edges to the image, or their FFNs.

    Raises:
        ValueError: another path.
    """

    def __init__(self, path: str):
        if path not in PATHS:
            raise ValueError(f"expected a path of {list(PATHS)}, got {path!r}")
        self.path = path
        self.held: list[Held] = []

    def on_train_begin(self, args, state, control, *, model, processing_class, **_):
        """Sets the weights, and takes them out of every gradient."""
        self.held = list(closed(model, processing_class.tokenizer, self.path))
        _set(self.held)
        for parameter in {id(one[0]): one[0] for one in self.held}.values():
            parameter.register_hook(_without(parameter, self.held))

    def on_step_end(self, args, state, control, **_):
        """Takes back what weight decay did."""
        _set(self.held)


def closed(model: nn.Module, tokenizer, path: str) -> Iterator[Held]:
    """The weights that close a path, in the order in which they are to be set.

    Args:
        model: a Qwen2.5-VL.
        tokenizer: names the tokens of an answer.
        path: of `PATHS`.
    """
    parts = families.parts(model)
    flags = (ROW, IMAGE) if path == "image" else (ROW,)
    yield from _flags(parts, tokenizer, flags)
    for layer in parts.layers:
        # Nobody else writes a flag.
        for flag in flags:
            yield layer.o_proj.weight, (flag,), 0.0
            yield layer.ffn.down_proj.weight, (flag,), 0.0
        if path == "image":
            yield layer.attention_norm.weight, (list(flags),), 1.0
            yield from _shut_edges(layer, parts.d_head)
        else:
            yield layer.ffn_norm.weight, (ROW,), 1.0
            yield layer.ffn.gate_proj.weight, (slice(None), ROW), -STRENGTH


def _flags(parts: Parts, tokenizer, flags: tuple[int, ...]) -> Iterator[Held]:
    embedding = parts.language_model.embed_tokens.weight
    answered = [i for text in (">\n", *"0123456789", *COLORS) for i in tokenizer.encode(text)]
    merger = parts.vision_tower.merger.mlp[-1]
    for flag in flags:
        yield embedding, (slice(None), flag), 0.0
        yield merger.weight, (flag,), 0.0
        yield merger.bias, (flag,), FLAG if flag == IMAGE else 0.0
        # The output embedding is tied to the other: a flag is no logit.
        yield parts.final_norm.weight, (flag,), 0.0
    yield embedding, (answered, ROW), FLAG


def _shut_edges(layer: Layer, d_head: int) -> Iterator[Held]:
    """The slowest rotary pair of every head sees the two flags alone."""
    slowest = d_head // 2 - 1
    for projection, flag, strength in (
        (layer.attention.q_proj, ROW, STRENGTH),
        (layer.attention.k_proj, IMAGE, -STRENGTH),
    ):
        for first in range(0, projection.out_features, d_head):
            pair = [first + slowest, first + d_head - 1]
            yield projection.weight, (pair,), 0.0
            yield projection.bias, (pair,), 0.0
            yield projection.weight, (pair[0], flag), strength


@torch.no_grad()
def _set(held: list[Held]) -> None:
    for parameter, index, value in held:
        parameter[index] = value


def _without(parameter: nn.Parameter, held: list[Held]):
    """A gradient hook of one parameter that leaves out what is held."""
    is_held = torch.zeros(parameter.shape, dtype=torch.bool)
    for one, index, _ in held:
        if one is parameter:
            is_held[index] = True

    def hook(gradient: Tensor) -> Tensor:
        return gradient.masked_fill(is_held.to(gradient.device), 0)

    return hook
