"""Numbers of a query → a labelled dataset: coordinates, units, titles and provenance."""

from functools import lru_cache
from importlib.metadata import version

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor

from interp.capture.prefill import Prefill
from interp.extract.question import Query
from interp.vocabulary import describe


def as_array(value: Tensor) -> np.ndarray:
    """A tensor as a numpy array in memory; half precision, which numpy lacks, as float32."""
    if value.dtype in (torch.bfloat16, torch.float16):
        value = value.float()
    return value.cpu().numpy()


def where_defined(
    values: Float[Tensor, "..."], is_defined: Bool[Tensor, "*cell"]
) -> Float[Tensor, "..."]:
    """Values over cells and more, and NaN for cells that are not defined, which means leave out."""
    rest = [1] * (values.ndim - is_defined.ndim)
    return values.masked_fill(~is_defined.reshape(*is_defined.shape, *rest), torch.nan)


def joined(pieces: list[Tensor]) -> Tensor:
    """Chunks concatenated along targets; a single one is returned as it is."""
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def coordinates(query: Query, context: Prefill | None = None) -> dict:
    """Coordinates of targets, layers and heads, and of the source tokens given their prefill."""
    tokens, rows = query.tokens, query.rows.tolist()
    after = [tokens.role[r + 1] if r + 1 < len(tokens.ids) else "text" for r in rows]
    coordinates = {
        "target": np.arange(len(rows)),
        "target_position": ("target", rows),
        "target_token": ("target", [shown(text) for text in query.target_text]),
        "target_token_id": ("target", query.targets.tolist()),
        "target_role": ("target", after),
        "layer": np.arange(query.parts.n_layers),
        "head": np.arange(query.parts.n_heads),
    }
    if context is not None:
        coordinates |= {
            "source": np.arange(len(tokens.ids)),
            "source_token": ("source", [shown(text) for text in tokens.text]),
            "source_token_id": ("source", tokens.ids),
            "source_role": ("source", list(tokens.role)),
            "image": ("source", tokens.image),
            "view": ("source", tokens.view),
            "row": ("source", tokens.row),
            "column": ("source", tokens.column),
            "box_overlap": ("source", tokens.box_overlap),
            "is_evidence": ("source", tokens.is_evidence),
        }
        if context.peaks is not None:
            coordinates["peak"] = ("source", as_array(context.peaks))
            coordinates["is_sink"] = ("source", as_array(context.is_sink))
    return coordinates


def shown(text: str) -> str:
    """A token's text with signs for NUL, which arrays of text cut off at its end."""
    return text.replace("\0", "␀")


def finished(query: Query, dataset: xr.Dataset, attributes: dict) -> xr.Dataset:
    """The dataset with units, titles and provenance."""
    used = {dim for array in dataset.data_vars.values() for dim in array.dims}
    dataset = describe(dataset.drop_vars({"head", "layer", "role"} & set(dataset.coords) - used))
    dataset.attrs = {
        **query.attributes,
        "norm": "frozen at the clean run",
        **attributes,
        "dtype": str(query.model.dtype).removeprefix("torch."),
        "attn_implementation": query.parts.attn_implementation,
        **_versions(),
    }
    return dataset


@lru_cache
def _versions() -> dict[str, str]:
    """Read once; it takes longer than a small model's forward."""
    return {name: version(name) for name in ("torch", "transformers", "nnsight", "xarray")}
