"""Checks that inputs belong together, for mistakes that the model would not notice."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from interp.model.parts import Parts

_ARE_SUMS_CHECKED = ContextVar("are_sums_checked", default=True)


def are_sums_checked() -> bool:
    """Whether parts that do not sum to their whole are an error, as they are in every call."""
    return _ARE_SUMS_CHECKED.get()


@contextmanager
def sums_unchecked() -> Iterator[None]:
    """Context in which sums are nobody's error: the certificate measures them, and says which."""
    token = _ARE_SUMS_CHECKED.set(False)
    try:
        yield
    finally:
        _ARE_SUMS_CHECKED.reset(token)


def check_inputs(parts: Parts, batch) -> None:
    """Raises ValueError unless the batch is one sequence whose parts belong together.

    Losing `mm_token_type_ids`, for one, raises nothing in the model: positions silently become
    one-dimensional.
    """
    if "pixel_values_videos" in batch or "video_grid_thw" in batch:
        raise ValueError("expected images, got a video; extract its frames as images")
    ids, mask = _present(batch, "input_ids"), _present(batch, "attention_mask")
    if ids.ndim != 2 or len(ids) != 1 or mask.shape != ids.shape:
        raise ValueError(
            "expected input_ids and attention_mask of shape (1, tokens), got "
            f"{tuple(ids.shape)} and {tuple(mask.shape)}; pass one sequence"
        )
    check_length(parts, ids.shape[1])
    _check_mask(ids[0], mask[0].bool())
    is_image = ids[0] == parts.image_token_id
    if is_image.any():
        _check_images(batch, is_image, parts.patches_per_token)


def check_length(parts: Parts, n_tokens: int) -> None:
    """Raises ValueError for a sequence that is longer than the model's context."""
    if n_tokens > parts.max_positions:
        raise ValueError(
            f"expected at most {parts.max_positions} tokens, got {n_tokens}; "
            "lower max_pixels or shorten the text"
        )


def _present(batch, name: str) -> Tensor:
    if name not in batch:
        raise ValueError(
            f"expected {name} in the inputs, got {sorted(batch)}; pass all the processor gives"
        )
    return batch[name]


def _check_mask(ids: Tensor, mask: Tensor) -> None:
    """Padding is one run on one side, of one token that does not stand next to it."""
    edges = (mask[1:] != mask[:-1]).sum() if len(mask) > 1 else 0
    padding, seen = ids[~mask], ids[mask]
    if len(seen) == 0 or edges > 1:
        raise ValueError(
            "expected padding on one side only, got an attention_mask with gaps or all zero"
        )
    is_left = len(padding) > 0 and not mask[0]
    if len(padding) and ((padding != padding[0]).any() or (is_left and seen[0] == padding[0])):
        raise ValueError(
            "expected attention_mask to cover exactly the padding tokens, got one that is shifted; "
            "take it from the same processor call as input_ids"
        )


def _check_images(batch, is_image: Tensor, patches_per_token: int) -> None:
    types = _present(batch, "mm_token_type_ids")[0]
    if types.shape != is_image.shape or not torch.equal(types == 1, is_image):
        raise ValueError(
            "expected mm_token_type_ids to be 1 exactly at the image tokens, got another pattern; "
            "extend it with zeros for text that is added behind the prompt"
        )
    pixels, grids = _present(batch, "pixel_values"), _present(batch, "image_grid_thw")
    if len(pixels) != int(grids.prod(dim=1).sum()):
        raise ValueError(
            f"expected {int(grids.prod(dim=1).sum())} patches for image_grid_thw={grids.tolist()}, "
            f"got {len(pixels)} rows of pixel_values; take both from one processor call"
        )
    if len(pixels) != patches_per_token * int(is_image.sum()):
        raise ValueError(
            f"expected {len(pixels) // patches_per_token} image tokens, got {int(is_image.sum())}; "
            "take input_ids and pixel_values from one processor call"
        )
