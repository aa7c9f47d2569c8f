"""Pixels against vectors: a patch painted before the tower, its vector swapped behind it (3.8)."""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from scipy.stats import rankdata
from torch import Tensor

from interp.capture.prefill import several
from interp.data.images import blank, open_image
from interp.data.sample import Sample
from interp.extract.arguments import Foils, Positions, TargetTokens, Text
from interp.extract.dataset import as_array, coordinates, finished
from interp.extract.node_effects import node_effects
from interp.extract.patch_effects import patch_effects
from interp.extract.prefilled import Asked, asked
from interp.extract.question import Query, check_pair, whole_numbers
from interp.extract.references import blurred
from interp.extract.source_sets import source_sets, visual_sets
from interp.inputs.prompts import image_inputs, with_images
from interp.inputs.tokens import Tokens
from interp.model.families import base_model
from interp.model.state import undisturbed
from interp.model.vlm import VLM, image_embeddings
from interp.vocabulary import INTERVENTIONS

AT_ONCE = 16  # sequences in one forward


def pixel_effects(
    vlm: VLM,
    sample: Sample,
    *,
    reference="blank",
    sources: Iterable[str] | None = None,
    patches: Iterable[int] | None = None,
    completion: Text | None = None,
    positions: Positions | None = None,
    targets: TargetTokens | None = None,
    gauge: str = "centered",
    foils: Foils | None = None,
) -> xr.Dataset:
    """Effects of painting patches, and of swapping their vectors, on targets (METHODS.md 3.8).

    "Token p" is not "the pixels of cell p", because the vision tower mixes patches. The same other
    image is brought in by three interventions: "pixels" paints the cells before the tower, and
    "vector" swaps their vectors behind it, both in whole forwards; "slot" swaps their keys and
    values for the target's row alone (3.5). `total` has them for single visual tokens, `set_total`
    for named sets, `rank_with_pixels` is the Spearman correlation of each map with that of pixels,
    and `border_share` the share of Σ|total| in the outermost cells, beside their share of the
    cells, `border_area`. Two forwards a patch: of a large image ask for some.

    Args:
        vlm, completion, positions, targets, gauge, foils: as for `ledger`.
        sample: of one image.
        reference: the other image: "blank", the processor's mean colour, "blur", or a picture,
            which is brought to the sample's size.
        sources: names of visual source sets; the image and, where there are boxes, the evidence.
        patches: rows of the visual tokens that are tried one by one; all by default. `total` is NaN
            for the others, and ranks and borders leave them out.

    Raises:
        ValueError: as for `ledger`; several images, or none; an unknown reference or source set;
            patches that are not distinct visual rows.
    """
    check_pair(vlm, sample)
    if len(sample.images) != 1:
        raise ValueError(f"{sample.id}: expected one image, got {len(sample.images)}")
    chosen = {"completion": completion, "positions": positions, "targets": targets}
    prefilled = asked(vlm, sample, gauge=gauge, foils=foils, **chosen)
    query, context = prefilled.query, prefilled.context
    names = visual_sets(query, context.is_sink) if sources is None else list(sources)
    names, members = source_sets(query, names, context.is_sink)
    if (members & ~query.is_visual).any():
        raise ValueError(f"expected visual source sets, got {names}")
    other = _other(vlm, sample, query, reference)
    embeddings = image_embeddings(query.model, other)
    single = _single(query, patches)
    rows = single.nonzero()[:, 1].tolist()
    wanted = torch.cat([single, members])[:, query.is_visual]
    with torch.no_grad(), undisturbed(query.model):
        by_intervention = [
            _painted(prefilled, other, wanted),
            _swapped(prefilled, embeddings, wanted),
        ]
        options = chosen | {"gauge": gauge, "foils": prefilled.foils}
        slots = _slots(vlm, sample, embeddings, rows, names, options)
        by_intervention.append(slots.to(by_intervention[0]))
    return _labelled(prefilled, torch.stack(by_intervention), rows, names)


def _single(query: Query, patches: Iterable[int] | None) -> Bool[Tensor, "patch token"]:
    """A set for every patch that is tried, in the order of the sequence."""
    visual = query.is_visual.nonzero()[:, 0].tolist()
    rows = visual if patches is None else sorted(whole_numbers(list(patches), "patches").tolist())
    if not rows or len(set(rows)) < len(rows) or not set(rows) <= set(visual):
        raise ValueError(
            f"expected distinct visual rows in {visual[0]}..{visual[-1]} as patches, got {rows}"
        )
    single = torch.zeros(len(rows), len(query.is_visual), dtype=torch.bool)
    single[torch.arange(len(rows)), rows] = True
    return single.to(query.is_visual.device)


def _other(vlm: VLM, sample: Sample, query: Query, reference) -> dict[str, Tensor]:
    """The sample's inputs with the other image in place of its own, on the same grid."""
    image = open_image(sample.image)
    if isinstance(reference, str) and reference in ("blank", "blur"):
        other = blank(vlm.processor, image.size) if reference == "blank" else blurred(image)
    else:
        other = open_image(reference).resize(image.size)
    return with_images(query.batch, image_inputs(vlm.processor, [other]), 1)


def _painted(
    prefilled: Asked, other: Mapping[str, Tensor], wanted: Bool[Tensor, "set visual"]
) -> Float[Tensor, "set target"]:
    """Loss of the targets when the cells of each set hold the other image's pixels, whole forwards.

    A token's cell is what the tower is given for it, in the token's own view.
    """
    query, parts = prefilled.query, prefilled.query.parts
    name, lost, base = "pixel_values", [], base_model(query.model).model
    clean, pixels = (parts.by_token(batch[name]) for batch in (query.batch, other))
    for some in wanted[..., None].split(AT_ONCE):
        cells = torch.where(some, pixels, clean).flatten(0, 1)
        batch = {
            key: value.repeat(len(some), *[1] * (value.ndim - 1))
            for key, value in query.batch.items()
        }
        batch[name] = parts.of_tokens(cells, batch[name])
        hidden = base(**batch, use_cache=False).last_hidden_state
        lost.append(_read(prefilled, hidden))
    return _clean(prefilled) - torch.cat(lost)


def _swapped(
    prefilled: Asked,
    embeddings: Float[Tensor, "visual content"],
    wanted: Bool[Tensor, "set visual"],
) -> Float[Tensor, "set target"]:
    """Loss of the targets when the vectors of each set are the other image's, whole forwards."""
    query, given = prefilled.query, prefilled.context.given
    visual, lost = query.is_visual.nonzero()[:, 0], []
    for some in wanted.split(AT_ONCE):
        own = prefilled.context.content.repeat(len(some), 1, 1)
        own[:, visual] = torch.where(some[..., None], embeddings.to(own), own[:, visual])
        arguments = given | query.parts.entering(own) | {"use_cache": False}
        arguments |= several(query.parts, given, len(some))
        lost.append(_read(prefilled, query.parts.run(arguments).last_hidden_state))
    return _clean(prefilled) - torch.cat(lost)


def _slots(vlm, sample, embeddings, rows, names, options) -> Float[Tensor, "set target"]:
    """Loss of the targets when their own rows alone read the other image's slots (3.5)."""
    cells = patch_effects(vlm, sample, form="slot", reference=embeddings, source=rows, **options)[
        "total"
    ]
    nodes = node_effects(vlm, sample, references={"other": embeddings}, sources=names, **options)
    alone = nodes["total"] - nodes["effect"].sel(path="mediated")
    both = np.concatenate([cells.values[:, rows], alone.isel(reference=0).values], axis=1)
    return torch.as_tensor(both.T)


def _read(prefilled: Asked, hidden: Float[Tensor, "set token d_model"]) -> Tensor:
    """The targets' logits in the gauge, of several runs: (set, target)."""
    rows = hidden[:, prefilled.query.rows].to(prefilled.gauge_rows.dtype)
    return torch.einsum("std,td->st", rows, prefilled.gauge_rows)


def _clean(prefilled: Asked) -> Float[Tensor, " target"]:
    """The targets' logits of the clean run, read as those of the others are."""
    arguments = prefilled.context.given | {"use_cache": False}
    return _read(prefilled, prefilled.query.parts.run(arguments).last_hidden_state)[0]


def _labelled(
    prefilled: Asked,
    lost: Float[Tensor, "intervention set target"],
    rows: list[int],
    names: tuple[str, ...],
) -> xr.Dataset:
    query, tokens = prefilled.query, prefilled.query.tokens
    values = as_array(lost).transpose(2, 0, 1)
    cells, sets = values[..., : len(rows)], values[..., len(rows) :]
    total = np.full((*cells.shape[:2], len(tokens.ids)), np.nan, dtype=cells.dtype)
    total[..., rows] = cells
    is_border = _is_border(tokens)[rows]
    mass = np.abs(cells)
    of_all = np.where(mass.any(axis=-1), mass.sum(axis=-1), np.nan)  # no effect has no border
    dims = ("target", "intervention")
    dataset = xr.Dataset(
        {
            "total": ((*dims, "source"), total),
            "set_total": ((*dims, "visual_set"), sets),
            "rank_with_pixels": (dims, _ranks(cells)),
            "border_share": (dims, mass[..., is_border].sum(-1) / of_all),
            "border_area": ((), is_border.mean()),
        },
        coords=coordinates(query, prefilled.context)
        | {"intervention": list(INTERVENTIONS), "visual_set": list(names)},
    )
    return finished(query, dataset, {"gauge": prefilled.gauge})


def _is_border(tokens: Tokens) -> Bool[np.ndarray, " token"]:
    """Which visual tokens look at the outermost cells of their view."""
    is_border = np.zeros(len(tokens.ids), dtype=bool)
    for view in np.unique(tokens.view[tokens.is_visual]):
        is_here = tokens.view == view
        for place in (tokens.row, tokens.column):
            is_border |= is_here & ((place == 0) | (place == place[is_here].max()))
    return is_border


def _ranks(cells: np.ndarray) -> np.ndarray:
    """Spearman correlation over patches of every intervention's map with that of the first."""
    ranks = rankdata(cells, axis=-1)
    ranks = ranks - ranks.mean(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):  # of a map that is the same everywhere there is none
        ranks = ranks / np.linalg.norm(ranks, axis=-1, keepdims=True)
    return np.einsum("tip,tp->ti", ranks, ranks[:, 0])
