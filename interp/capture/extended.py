"""One prefill of what several sequences begin with, extended by each: a group of completions."""

from collections.abc import Mapping

import torch
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from interp.capture.assembled import Run, assembled
from interp.capture.prefill import Prefill, Prefills, prefill
from interp.model import families
from interp.model.parts import Parts
from interp.model.state import undisturbed


def extended(model: nn.Module, batches: list[Mapping], groups: list[list[int]]) -> Prefills:
    """Prefills of sequences in groups that have their image, and the text around it, in common.

    Args:
        model: whose sequences they are.
        batches: as a processor gives them, one sequence each.
        groups: numbers of the sequences that begin alike.

    Raises:
        ValueError: a family whose rows do not all see everything before them.
    """
    parts = families.parts(model)
    if parts.has_windows:
        raise ValueError("expected layers that see the whole text, got some with a window")
    n_tokens = [batch["input_ids"].shape[1] for batch in batches]
    runs: dict[int, Run] = {}
    with undisturbed(model), torch.no_grad():
        for group in groups:
            ids = [batches[k]["input_ids"][0] for k in group]
            n_common = _n_common(ids)
            beginning = _beginning(batches[group[0]], n_common)
            clean = prefill(model, beginning, torch.tensor([n_common - 1], device=ids[0].device))
            runs |= zip(group, _runs(parts, clean, [one[n_common:] for one in ids]), strict=True)
    return assembled(parts, [runs[k] for k in range(len(batches))], n_tokens)


def _n_common(ids: list[Int[Tensor, " _"]]) -> int:
    """With how many tokens all begin; one at least is left of each."""
    n = min(len(one) for one in ids) - 1
    differs = [(one[:n] != ids[0][:n]).nonzero() for one in ids]
    return min([n, *(int(where[0]) for where in differs if len(where))])


def _beginning(batch: Mapping, n_tokens: int) -> dict[str, Tensor]:
    shape = batch["input_ids"].shape
    return {
        name: value[:, :n_tokens] if value.shape == shape else value
        for name, value in batch.items()
    }


def _runs(parts: Parts, clean: Prefill, rests: list[Int[Tensor, " _"]]) -> list[Run]:
    """The sequences out of their common beginning and what each goes on with."""
    n_runs, n_common = len(rests), len(clean.is_visible)
    ids = nn.utils.rnn.pad_sequence(rests, batch_first=True)
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(zip(clean.keys, clean.values, strict=True)):
        cache.update(*(one.repeat(n_runs, 1, 1, 1) for one in (keys, values)), layer)
    content = _embedded(parts, clean, ids)
    # Behind the images all axes count alike.
    after = clean.position_ids[:, -1].max() + 1 + torch.arange(ids.shape[1], device=ids.device)
    positions = repeat(after, "t -> xyz s t", xyz=3, s=n_runs)
    n_all = torch.tensor([n_common + len(one) for one in rests], device=ids.device)
    tokens = torch.arange(n_common + ids.shape[1], device=ids.device)
    arguments = parts.entering(content) | {
        "position_ids": parts.placed(positions),
        "attention_mask": (tokens < n_all[:, None]).long(),
        "past_key_values": cache,
        "use_cache": True,
    }
    parts.run(arguments)
    beginning = clean.position_ids
    return [
        Run(
            keys=[layer.keys[s, :, :n] for layer in cache.layers],
            values=[layer.values[s, :, :n] for layer in cache.layers],
            content=torch.cat([clean.content, content[s, : n - n_common]]),
            positions=torch.cat([beginning, positions[:, s, : n - n_common]], dim=1),
        )
        for s, n in enumerate(n_all.tolist())
    ]


def _embedded(
    parts: Parts, clean: Prefill, ids: Int[Tensor, "sequence token"]
) -> Float[Tensor, "sequence token content"]:
    """Content of text: nothing is added to it behind later layers."""
    embeddings = parts.language_model.get_input_embeddings()(ids)
    missing = clean.content.shape[-1] - embeddings.shape[-1]
    return nn.functional.pad(embeddings, (0, missing))
