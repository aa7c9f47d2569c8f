"""Upper estimate of the bytes that an extraction needs besides the model, from sizes alone.

    base       what the first call of a process leaves behind: buffers of threads and libraries
    prefill    keys and values of every layer, and the activations of the widest module
    logits     of the targets, in the model's dtype and in float32 as they are and normalised
    replay     attention rows of every layer, head and variant, and the vectors written

Batches are packed by this estimate before anything is computed; `analyses/benchmark.py --growth`
puts it beside measured peaks.
"""

from dataclasses import dataclass

import torch
from accelerate.utils.memory import should_reduce_batch_size

from interp.model.parts import Parts

BASE = 160 * 2**20


@dataclass(frozen=True)
class Load:
    """Sizes of one sequence's extraction."""

    n_tokens: int
    n_targets: int
    n_variants: int = 1
    """Variants of a replay, the clean one included."""
    is_full: bool = False
    """Whether direct contributions by layer and head are asked for."""


def largest(loads: list[Load]) -> Load:
    """Peak sizes over several extractions that run one after the other on the same sequence."""
    names = ("n_tokens", "n_targets", "n_variants", "is_full")
    return Load(**{name: max(getattr(one, name) for one in loads) for name in names})


def is_out_of_memory(error: Exception) -> bool:
    """Whether a smaller batch may help."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or should_reduce_batch_size(
        error
    )


def needed(parts: Parts, loads: list[Load], element_size: int) -> int:
    """Estimated bytes of one padded batch, every sequence counted with the largest sizes.

    Args:
        parts: the model's sizes.
        loads: of its sequences.
        element_size: bytes of one number in the model's dtype.
    """
    n_sequences = len(loads)
    most = largest(loads)
    tokens, targets, variants = most.n_tokens, most.n_targets, most.n_variants
    cache = 2 * parts.n_layers * parts.n_kv_heads * parts.d_head * tokens
    activations = tokens * parts.n_activations
    is_eager = parts.attn_implementation == "eager"
    attention = tokens * tokens * (3 * parts.n_heads if is_eager else 2)
    patches = tokens * parts.patches_per_token
    tower = 3 * parts.n_tower_heads * patches * patches * is_eager  # one image after the other
    wide = max(4, element_size)  # of the algebra
    prefill = element_size * (n_sequences * (cache + activations + attention) + tower)
    logits = n_sequences * targets * parts.n_vocabulary * (element_size + wide * 3)
    rows = n_sequences * variants * targets
    # Eight: of a layer's attention rows, those being made, masked, weighed and compared besides.
    weights = rows * parts.n_heads * tokens * wide * (parts.n_layers + 8)
    vectors = rows * parts.n_layers * 3 * parts.n_heads * parts.d_head * element_size
    full = n_sequences * targets * parts.n_layers * parts.n_heads * tokens * wide * 2
    full *= most.is_full
    return BASE + prefill + logits + weights + vectors + full
