"""Several sequences as one batch, padded on the left, each with what it came with."""

from collections.abc import Mapping

import torch
from jaxtyping import Int
from torch import Tensor, nn

from interp.model.parts import Parts


def padded(parts: Parts, batches: list[Mapping], n_padding: list[int]) -> dict[str, Tensor]:
    """One batch out of several of one sequence each; text has no pixels.

    Args:
        parts: the model's parts.
        batches: as a processor gives them.
        n_padding: how many tokens come in front of each.

    Raises:
        ValueError: positions on three axes with some of the sequences alone.
    """
    is_said = any("position_ids" in batch for batch in batches)
    if parts.n_axes == 1 and (is_said or any(n_padding)):  # the model would count our padding
        batches = [{"position_ids": _counted(batch["input_ids"])} | batch for batch in batches]
    together = {}
    of_tokens = [_by_token(batch) for batch in batches]
    for name in dict.fromkeys(name for batch in batches for name in batch):
        if name == "position_ids" and parts.n_axes == 3:
            own = [batch[name] for batch in batches if name in batch]
            together[name] = _on_three_axes(own, n_padding)
            continue
        if any(name in own for own in of_tokens):  # types of tokens, which text alone may lack
            batches = [{name: torch.zeros_like(one["input_ids"])} | one for one in batches]
        having = [batch for batch in batches if name in batch]
        values = _as_many([batch[name] for batch in having])
        if all(batch[name].shape == batch["input_ids"].shape for batch in having):
            # Nothing sees the padding, so any token will do that does not stand for an image.
            fill = int(parts.image_token_id == 0) if name == "input_ids" else 0
            values = [
                nn.functional.pad(value, (n, 0), value=fill)
                for value, n in zip(values, n_padding, strict=True)
            ]
        together[name] = torch.cat(values)
    return together


def _on_three_axes(positions: list[Int[Tensor, "... 1 _"]], n_padding: list[int]) -> Tensor:
    """Positions of one's own, of every sequence: a model counts for all of a batch or for none."""
    if len(positions) != len(n_padding):
        raise ValueError(
            f"expected position_ids in each batch or in none, got {len(positions)} of "
            f"{len(n_padding)}; ask about the others by themselves"
        )
    pairs = zip(positions, n_padding, strict=True)
    return torch.cat([nn.functional.pad(one, (n, 0)) for one, n in pairs], dim=-2)


def _by_token(batch: Mapping) -> set[str]:
    shape = batch["input_ids"].shape
    return {name for name, value in batch.items() if value.shape == shape}


def _counted(ids: Int[Tensor, "1 token"]) -> Int[Tensor, "1 token"]:
    return torch.arange(ids.shape[1], device=ids.device)[None]


def _as_many(values: list[Tensor]) -> list[Tensor]:
    """Pixels of several sequences whose tiles are an axis of their own, filled up to the most."""
    if values[0].ndim < 4 or len({value.shape[1:] for value in values}) == 1:
        return values
    most = max(value.shape[1] for value in values)
    behind = [0, 0] * (values[0].ndim - 2)
    return [nn.functional.pad(one, (*behind, 0, most - one.shape[1])) for one in values]
