"""Deletion and insertion (Petsiuk et al. 2018; Table 1 of Saliency-R1; METHODS.md 4).

The pixels that a map ranks highest are painted over, or painted onto a blank canvas, and the model
is asked how likely its own text now is. Normalised, a blank image is 0 and the original 100: the
less is left after a deletion, and the more is there after an insertion, the more faithful the map.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from interp.data.images import blank
from interp.data.sample import Sample
from interp.extract.question import Query, ask
from interp.inputs.canvas import canvas
from interp.inputs.completions import Completion
from interp.inputs.prompts import given_text, image_inputs, text_ids, with_images
from interp.model.state import undisturbed
from interp.model.vlm import VLM
from interp.vocabulary import CHANGES, TEXT_PARTS, describe, require

SHARES = (0.05, 0.15, 0.30)
AT_ONCE = 16  # canvases in one forward


def faithfulness(
    vlm: VLM,
    sample: Sample,
    maps: Mapping[str, xr.DataArray],
    *,
    completion: Completion | str | None = None,
    shares: Sequence[float | int] = SHARES,
    at_once: int = AT_ONCE,
) -> xr.Dataset:
    """Mean log-likelihood per token of the text on every changed image, in nat.

    All methods' canvases go through the same processing, some of them at a time.

    Args:
        vlm, sample, completion: whose text is scored; the sample's own without a completion.
        maps: by method, over (row, column), larger where pixels should matter more.
        shares: of the pixels that are changed.
        at_once: canvases in one forward.

    Returns:
        `log_likelihood (explainer, change, share, text)`, `of_original (text)`, `of_blank (text)`;
        text "all" is every token that was generated, "answer" the answer's alone.

    Raises:
        ValueError: no maps, a map that is not finite or not on the image's grid, shares outside
            0..1; bad samples.
    """
    completion = given_text(vlm.processor.tokenizer, completion)
    query = ask(vlm, sample, completion=completion)
    grid = canvas(vlm.processor, sample.image, query.tokens)
    for name, saliency in maps.items():
        _check(name, saliency, grid.shape)
    if not maps:
        raise ValueError("expected one or more maps, got none")
    if not all(0 < share <= 1 for share in shares) or not shares:
        raise ValueError(f"expected shares of the pixels above 0 and up to 1, got {tuple(shares)}")
    original, size = grid.pixels, grid.pixels.shape[1::-1]
    empty = np.asarray(blank(vlm.processor, size))
    canvases = [original, empty]
    for saliency in maps.values():
        order = pixel_order(saliency, size)
        canvases += [changed(original, empty, order, c, s) for c in CHANGES for s in shares]
    n_text = len(text_ids(vlm.processor, sample, completion))
    scores = log_likelihoods(vlm, query, n_text, canvases, at_once)
    by_map = scores[2:].reshape(len(maps), len(CHANGES), len(shares), len(TEXT_PARTS))
    return describe(
        xr.Dataset(
            {
                "log_likelihood": (("explainer", "change", "share", "text"), by_map),
                "of_original": (("text",), scores[0]),
                "of_blank": (("text",), scores[1]),
            },
            coords={
                "explainer": list(maps),
                "change": list(CHANGES),
                "share": list(shares),
                "text": list(TEXT_PARTS),
            },
        )
    )


def _check(name: str, saliency: xr.DataArray, shape: tuple[int, int]) -> None:
    require(saliency, "row", "column")
    if tuple(saliency.transpose("row", "column").shape) != shape:
        raise ValueError(f"{name}: expected a map of {shape} patches, got {saliency.shape}")
    if not np.isfinite(saliency.values).all():
        raise ValueError(f"{name}: expected a finite map, got NaN or inf in it")


def pixel_order(saliency: xr.DataArray, size: tuple[int, int]) -> Int[np.ndarray, " pixel"]:
    """Pixels from the most to the least salient, bilinear between patches, ties by raster order."""
    values = saliency.transpose("row", "column").values.astype(np.float32)
    scaled = np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR))
    return np.argsort(-scaled.ravel(), kind="stable")


def changed(
    original: np.ndarray, empty: np.ndarray, order: np.ndarray, change: str, share: float
) -> np.ndarray:
    """The image without its most salient pixels, or a blank canvas with them."""
    n_pixels = round(share * len(order))
    first, second = (original, empty) if change == "deletion" else (empty, original)
    canvas = first.reshape(-1, 3).copy()
    canvas[order[:n_pixels]] = second.reshape(-1, 3)[order[:n_pixels]]
    return canvas.reshape(original.shape)


@torch.no_grad()
def log_likelihoods(
    vlm: VLM, query: Query, n_text: int, canvases: list[np.ndarray], at_once: int
) -> Float[np.ndarray, "canvas text"]:
    """Mean log-probability of the last `n_text` tokens with each canvas as the image."""
    batch, last = query.batch, query.batch["input_ids"].shape[1] - 1
    rows = torch.arange(last - n_text, last, device=query.rows.device)
    targets = batch["input_ids"][0, rows + 1]
    is_answer = [query.tokens.role[row + 1] == "answer" for row in rows.tolist()]
    scores = []
    with undisturbed(vlm.model):
        for start in range(0, len(canvases), at_once):
            images = [Image.fromarray(one) for one in canvases[start : start + at_once]]
            seen = with_images(batch, image_inputs(vlm.processor, images), len(images))
            logits = vlm.model(**seen, use_cache=False, logits_to_keep=rows)
            scores.append(_text_scores(logits.logits, targets, is_answer))
    return torch.cat(scores).cpu().numpy()


def _text_scores(
    logits: Float[Tensor, "canvas token vocabulary"], targets: Tensor, is_answer: list[bool]
) -> Float[Tensor, "canvas text"]:
    log_probability = logits.float().log_softmax(dim=-1)
    token_scores = log_probability.gather(2, targets.expand(len(logits), -1)[..., None])[..., 0]
    return torch.stack(
        [token_scores.mean(dim=1), token_scores[:, is_answer].mean(dim=1)], dim=1
    ).double()
