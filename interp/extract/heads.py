"""The heads that write most into each target, with what they look at (METHODS.md 2)."""

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from interp.capture.replay import replay
from interp.extract.arguments import Foils, Inputs, Model, Positions, TargetTokens, Text
from interp.extract.dataset import as_array, coordinates, finished, joined
from interp.extract.ledger import account
from interp.extract.prefilled import Asked, asked
from interp.extract.question import target_chunks
from interp.model.state import undisturbed


def heads(
    model: Model,
    inputs: Inputs,
    *,
    n: int = 8,
    completion: Text | None = None,
    positions: Positions | None = None,
    targets: TargetTokens | None = None,
    gauge: str = "centered",
    foils: Foils | None = None,
) -> xr.Dataset:
    """Contributions of every head to each target's logit, and where the strongest heads look.

    `head_direct` and `head_image` (target, layer, head) are Eq. 1 of Saliency-R1 summed over all
    source tokens and over the visual ones. For the n heads with the largest Σ|Eq. 1| over visual
    tokens (over all tokens where none is visual), strongest first, `top_direct` and `top_attention`
    (target, rank, source) hold Eq. 1 and the weights of attention, which sum to 1; `top_layer` and
    `top_head` (target, rank) say which they are. With n as large as there are heads it is all of
    the ledger's `direct`; with fewer it takes little memory, whatever the model's depth.

    Args:
        model, inputs, completion, positions, targets, gauge, foils: as for `ledger`.
        n: so many heads of each target; all where there are fewer.

    Raises:
        ValueError: as for `ledger`; n below 1.
    """
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
        raise ValueError(f"expected n >= 1 heads as a whole number, got {n!r}")
    prefilled = asked(
        model,
        inputs,
        completion=completion,
        positions=positions,
        targets=targets,
        gauge=gauge,
        foils=foils,
    )
    query = prefilled.query
    with torch.no_grad(), undisturbed(query.model):
        chunks = [_strongest(prefilled, part, int(n)) for part in target_chunks(query, 2)]
    return _labelled(prefilled, chunks)


def _strongest(prefilled: Asked, part: Int[Tensor, " part"], n: int) -> dict:
    """Every head's sums, and the strongest heads' rows, of some targets: name → (dims, tensor)."""
    query = prefilled.query
    played = replay(query.model, prefilled.context, query.rows[part])
    direct = account(prefilled, part, played, "full", False)["direct"][1]
    attention = torch.stack([one[0] for one in played.weights], dim=1)
    is_visual = query.is_visual
    ranked_by = is_visual if bool(is_visual.any()) else torch.ones_like(is_visual)
    mass = direct[..., ranked_by].abs().sum(dim=-1).flatten(1)
    top = mass.argsort(dim=1, descending=True, stable=True)[:, :n]
    by_head, by_source = ("target", "layer", "head"), ("target", "rank", "source")
    return {
        "head_direct": (by_head, direct.sum(dim=-1)),
        "head_image": (by_head, direct[..., is_visual].sum(dim=-1)),
        "top_layer": (("target", "rank"), top // direct.shape[2]),
        "top_head": (("target", "rank"), top % direct.shape[2]),
        "top_direct": (by_source, _rows(direct, top)),
        "top_attention": (by_source, _rows(attention, top)),
    }


def _rows(
    values: Float[Tensor, "target layer head source"], top: Int[Tensor, "target rank"]
) -> Float[Tensor, "target rank source"]:
    """Rows of some heads of each target, which layer and head number together."""
    flat = values.flatten(1, 2)
    return flat.gather(1, top[..., None].expand(-1, -1, flat.shape[-1]))


def _labelled(prefilled: Asked, chunks: list[dict]) -> xr.Dataset:
    variables = {
        name: (dims, as_array(joined([chunk[name][1] for chunk in chunks])))
        for name, (dims, _) in chunks[0].items()
    }
    dataset = xr.Dataset(variables, coords=coordinates(prefilled.query, prefilled.context))
    ranks = np.arange(dataset.sizes["rank"])
    attributes = {"gauge": prefilled.gauge}
    return finished(prefilled.query, dataset.assign_coords(rank=ranks), attributes)
