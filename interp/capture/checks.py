"""Checks that inputs belong together, for mistakes that the model would not notice."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

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
        _present(batch, "pixel_values")
        parts.check_images(batch, is_image)


def check_length(parts: Parts, n_tokens: int) -> None:
    """Raises ValueError for a sequence that is longer than the model's context."""
    if n_tokens > parts.max_positions:
        raise ValueError(
            f"expected at most {parts.max_positions} tokens, got {n_tokens}; "
            "shrink the image (max_pixels, where the model has it) or shorten the text"
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
