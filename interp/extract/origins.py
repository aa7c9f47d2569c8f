"""Source depth of direct contributions (METHODS.md 2.1)."""

import numpy as np
import torch
import xarray as xr

from interp.algebra.ledger import direct_terms
from interp.algebra.origins import layered_origins, origin_scores, stream_origins, summed_origins
from interp.algebra.readout import read_out
from interp.capture.checks import are_sums_checked
from interp.capture.replay import replay, residual
from interp.extract.arguments import Foils, Inputs, Model, Positions, TargetTokens, Text
from interp.extract.dataset import as_array, coordinates, finished, joined
from interp.extract.prefilled import Asked, asked
from interp.extract.question import target_chunks
from interp.model.parts import Parts
from interp.model.state import undisturbed
from interp.vocabulary import BOUNDS, IMAGE_LEVEL, ORIGINS


def origins(
    model: Model,
    inputs: Inputs,
    *,
    completion: Text | None = None,
    positions: Positions | None = None,
    targets: TargetTokens | None = None,
    gauge: str = "centered",
    foils: Foils | None = None,
    by_layer: bool = False,
) -> xr.Dataset:
    """Direct contributions by what they are made of at the source (METHODS.md 2.1).

    Σ over origin of direct_by_origin + origin_remainder = Eq. 1 summed over layers and heads, per
    target and source token. Where the image enters later layers too (DeepStack), "image level l" is
    what was added behind layer l. It traces the whole residual stream: layers × tokens × width
    numbers.

    Args:
        model, inputs, completion, positions, targets, gauge, foils: as for `ledger`.
        by_layer: one origin per layer that wrote it ("attention 3") instead of their sums;
            coordinates `origin_kind` and `origin_layer` (-1 for the embedding; for a level, the
            layer behind which it is added).

    Raises:
        ValueError: as for `ledger`; origins that are far from their sum.
    """
    prefilled = asked(
        model,
        inputs,
        completion=completion,
        positions=positions,
        targets=targets,
        gauge=gauge,
        foils=foils,
    )
    query, context = prefilled.query, prefilled.context
    all_positions = torch.arange(len(query.tokens.ids), device=query.rows.device)
    with torch.no_grad(), undisturbed(query.model):
        stream = residual(query.model, query.batch, all_positions)
        chunks = [
            _chunk(prefilled, stream, part, by_layer)
            for part in target_chunks(query, n_variants=1 + len(ORIGINS))
        ]
    direct_by_origin, remainder = (joined(list(column)) for column in zip(*chunks, strict=True))
    if are_sums_checked():
        _check_remainder(remainder, direct_by_origin, str(query.model.dtype)[6:])
    dataset = xr.Dataset(
        {
            "direct_by_origin": (("target", "source", "origin"), as_array(direct_by_origin)),
            "origin_remainder": (("target", "source"), as_array(remainder)),
        },
        coords=coordinates(query, context) | _names(query.parts, by_layer),
    )
    return finished(query, dataset, {"gauge": gauge})


def _check_remainder(remainder, direct_by_origin, dtype: str) -> None:
    """Raises ValueError where origins are far from their sum.

    States are rounded at every layer, so that a deep model's origins are further from it than the
    parts of a logit; what is missing altogether is more than that.
    """
    bound = BOUNDS[dtype] * (100 if dtype in ("float32", "float64") else 5)
    direct = (direct_by_origin.sum(dim=-1) + remainder).abs().sum(dim=1)
    error = remainder.abs().sum(dim=1)
    if not bool((error <= bound * direct + torch.finfo(direct.dtype).tiny).all()):
        raise ValueError(
            f"expected origins that sum to the direct terms, got a remainder of "
            f"{float((error / direct).max()):.2g} of them (bound {bound:g}); is a norm or a layer "
            "changed by hooks or an adapter that depends on the text?"
        )


def _names(parts: Parts, by_layer: bool) -> dict:
    n_layers, levels = parts.n_layers, list(range(parts.n_injected))
    named_levels = [f"{IMAGE_LEVEL} {level}" for level in levels]
    if not by_layer:
        return {"origin": [*ORIGINS, *named_levels]}
    kinds = ["embed", *np.repeat(ORIGINS[1:], n_layers).tolist()]
    layers = [-1, *list(range(n_layers)) * (len(ORIGINS) - 1)]
    names = ["embed", *(f"{k} {n}" for k, n in zip(kinds[1:], layers[1:], strict=True))]
    names, layers = names + named_levels, layers + levels
    kinds += [IMAGE_LEVEL] * len(levels)
    return {
        "origin": names,
        "origin_kind": ("origin", kinds),
        "origin_layer": ("origin", layers),
    }


def _chunk(prefilled: Asked, stream, part, by_layer: bool):
    """direct_by_origin and what is left of direct, summed over layers and heads."""
    rows, parts, context = prefilled.query.rows[part], prefilled.query.parts, prefilled.context
    played = replay(prefilled.query.model, context, rows)
    readout = read_out(parts, prefilled.gauge_rows[part], played.final[0])
    written = stream_origins(parts, readout, stream)
    parts_of = layered_origins if by_layer else summed_origins
    direct_by_origin, direct = 0.0, 0.0
    for layer in range(parts.n_layers):
        bias = readout.biases[layer]
        weights, resid_pre = played.shares(layer)[0], stream["resid_pre"][layer]
        scores = origin_scores(parts, readout, resid_pre, parts_of(written, layer), layer)
        direct_by_origin = direct_by_origin + torch.einsum("thp,thpo->tpo", weights, scores)
        values = readout.values(context, layer)
        own = played.own_values[layer][0].to(bias.dtype) - bias
        terms = direct_terms(readout.folded[layer], values, own, weights, rows)
        direct = direct + terms.sum(dim=1)
    return direct_by_origin, direct - direct_by_origin.sum(dim=-1)
