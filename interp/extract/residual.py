"""The traced residual stream."""

import numpy as np
import torch
import xarray as xr

from interp.capture import replay as capture
from interp.capture.checks import check_inputs
from interp.extract.arguments import Inputs, Model, Positions, Text
from interp.extract.dataset import as_array, finished
from interp.extract.question import ask, whole_numbers
from interp.model import families
from interp.model.vlm import VLM


def residual(
    model: Model,
    inputs: Inputs,
    *,
    completion: Text | None = None,
    positions: Positions | None = None,
) -> xr.Dataset:
    """The traced residual stream of the model's own forward, (component, layer, position, d_model).

    resid_pre + attn_out = resid_mid and resid_mid + ffn_out = resid_post, up to the rounding of the
    model's dtype. resid_post stands before what DeepStack adds behind the layer, and resid_pre of
    the next layer behind it; a model that has it has a component "injected", which is added.

    Args:
        model, inputs, completion: as for `ledger`.
        positions: rows to keep; all by default.

    Raises:
        ValueError: as for `ledger`.
    """
    if isinstance(model, VLM):
        query = ask(model, inputs, completion=completion)
    else:
        check_inputs(families.parts(model), inputs)
        first = int(inputs["attention_mask"][0].nonzero()[0])
        query = ask(model, inputs, positions=[first], targets=[0])
    n_tokens = len(query.tokens.ids)
    rows = list(range(n_tokens))
    if positions is not None:
        rows = whole_numbers(positions, "positions").tolist()
    if not rows or min(rows) < 0 or max(rows) >= n_tokens:
        raise ValueError(f"expected positions in 0..{n_tokens - 1}, got {rows}")
    index = torch.tensor(rows, device=query.rows.device)
    stream = capture.residual(query.model, query.batch, index)
    injected = stream.pop("injected")
    if len(injected):
        stream["injected"] = torch.zeros_like(stream["resid_pre"])
        stream["injected"][: len(injected)] = injected
    stacked = np.stack([as_array(stream[name]) for name in stream])
    dataset = xr.Dataset(
        {"residual": (("component", "layer", "position", "d_model"), stacked)},
        coords={
            "component": list(stream),
            "layer": np.arange(query.parts.n_layers),
            "position": rows,
            "token": ("position", [query.tokens.text[i] for i in rows]),
            "token_role": ("position", [query.tokens.role[i] for i in rows]),
        },
    )
    return finished(query, dataset, {})
