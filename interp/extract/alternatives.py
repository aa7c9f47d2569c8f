"""Alternatives: the tokens that a model finds likeliest at the row of each target."""

import numpy as np
import torch
import xarray as xr

from interp.extract.arguments import Inputs, Model, Positions, TargetTokens, Text
from interp.extract.dataset import as_array, coordinates, finished, shown
from interp.extract.prefilled import clean_run
from interp.extract.question import ask
from interp.model.state import undisturbed


def alternatives(
    model: Model,
    inputs: Inputs,
    *,
    n: int = 5,
    completion: Text | None = None,
    positions: Positions | None = None,
    targets: TargetTokens | None = None,
) -> xr.Dataset:
    """The n likeliest tokens at each target's row, likeliest first, in the model's own forward.

    `likely_token_id` and `likely_log_probability` (target, rank), in nats, over the whole
    vocabulary; `likely_token` is the token as text, with a `VLM`. The target itself may be any of
    them, or none; its own `log_probability (target)` stands beside them.

    Args:
        model, inputs, completion, positions, targets: as for `ledger`.
        n: so many tokens; all of a vocabulary that is smaller.

    Raises:
        ValueError: as for `ledger`; n below 1.
    """
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
        raise ValueError(f"expected n >= 1 tokens as a whole number, got {n!r}")
    query = ask(model, inputs, completion=completion, positions=positions, targets=targets)
    with torch.no_grad(), undisturbed(query.model):
        logits = clean_run(query).logits
    is_half = logits.dtype in (torch.bfloat16, torch.float16)
    log_probability = (logits.float() if is_half else logits).log_softmax(dim=-1)
    likely = log_probability.topk(min(int(n), logits.shape[1]), dim=-1)
    own = log_probability.gather(1, query.targets[:, None])[:, 0]
    variables = {
        "likely_token_id": (("target", "rank"), as_array(likely.indices)),
        "likely_log_probability": (("target", "rank"), as_array(likely.values)),
        "log_probability": (("target",), as_array(own)),
    }
    if query.tokenizer is not None:
        words = [
            [shown(query.tokenizer.decode([one])) for one in row] for row in likely.indices.tolist()
        ]
        variables["likely_token"] = (("target", "rank"), words)
    dataset = xr.Dataset(variables, coords=coordinates(query))
    ranks = np.arange(dataset.sizes["rank"])
    return finished(query, dataset.assign_coords(rank=ranks), {})
