"""TAM, the token activation map (Li et al. 2025), as we read it.

The activation map of token i is its logit at the visual rows. Tokens written before leave their own
activations there; what of them the map repeats is taken out, and noise is filtered by rank:

    M_i[v]    = max(0, g_i · n(h_v))                             v a visual row
    I[v]      = Σ_k w_k M_k[v],  w_k ∝ max(0, g_i · n(h_k))         k other tokens of question and
                                                                 text before i, Σ w = 1
    M̂         = max(0, M_i − s I),  s = max(0, ⟨M_i, I⟩ / ⟨I, I⟩)   least squares

g is a token's row of the output embedding above the mean row.
"""

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float

from interp.algebra.readout import gauge_rows
from interp.attribution.target import Asked, ask_one
from interp.data.sample import Sample
from interp.inputs.completions import Completion
from interp.maps.named import Wanted
from interp.model.state import undisturbed
from interp.model.vlm import VLM

WINDOW = 3
TEXT = ("question", "thinking", "answer")


@torch.no_grad()
def tam(
    vlm: VLM, sample: Sample, target: Wanted, *, completion: Completion | None = None
) -> xr.DataArray:
    """The token activation map of the target, not negative.

    Raises:
        ValueError: as `ask_one`.
    """
    prefilled = ask_one(vlm, sample, target, completion)
    with undisturbed(prefilled.query.model):
        hidden, reader, ids = _states(prefilled)
        visual = hidden[prefilled.visual]
        own = (visual @ reader).clamp(min=0)
        context = _context(prefilled, ids)
        if len(context):
            weights = (hidden[context] @ reader).clamp(min=0)
            rows = gauge_rows(prefilled.parts.output_embedding, ids[context], "centered")
            maps = (visual @ rows.to(visual.dtype).T).clamp(min=0)
            own = without(own, maps @ (weights / weights.sum().clamp(min=1e-12)))
    grid = prefilled.on_grid(own, "TAM")
    return grid.copy(data=rank_gaussian(grid.values))


def _states(prefilled: Asked) -> tuple:
    """Final-norm states of all rows, the target's row of the output embedding, and token ids."""
    with undisturbed(prefilled.query.model):
        arguments = prefilled.context.given | {"use_cache": False}
        hidden = prefilled.parts.run(arguments).last_hidden_state[0]
    reader = prefilled.reader
    return hidden.to(reader.dtype), reader, prefilled.query.batch["input_ids"][0]


def _context(prefilled: Asked, ids: torch.Tensor) -> torch.Tensor:
    """Rows of text up to the target's row, the target's own token left out."""
    roles = prefilled.query.tokens.role[: prefilled.row + 1]
    rows = [k for k, role in enumerate(roles) if role in TEXT and int(ids[k]) != prefilled.target]
    return torch.tensor(rows, dtype=torch.long, device=ids.device)


def without(own: torch.Tensor, context_map: torch.Tensor) -> torch.Tensor:
    """A map without what least squares explains by another one; negative values become 0."""
    scale = (own @ context_map / (context_map @ context_map).clamp(min=1e-12)).clamp(min=0)
    return (own - scale * context_map).clamp(min=0)


def rank_gaussian(values: Float[np.ndarray, "row column"]) -> Float[np.ndarray, "row column"]:
    """Each cell the mean of its window's sorted values, Gaussian in rank around the median.

    The width is the window's coefficient of variation: where values agree the median stands alone.
    """
    padded = np.pad(values, WINDOW // 2, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (WINDOW, WINDOW))
    ordered = np.sort(windows.reshape(*values.shape, -1), axis=-1)
    mean = ordered.mean(axis=-1, keepdims=True)
    width = np.divide(
        ordered.std(axis=-1, keepdims=True), mean, out=np.zeros_like(mean), where=mean > 0
    )
    rank = np.arange(WINDOW**2) - WINDOW**2 // 2
    weights = np.exp(-0.5 * (rank / np.maximum(width, 1e-3)) ** 2)
    weights /= weights.sum(axis=-1, keepdims=True)
    return (ordered * weights).sum(axis=-1)
