"""Nothing: what a method that knows nothing scores."""

import zlib

import torch
import xarray as xr

from interp.attribution.asked import ask_one
from interp.inputs import Completion
from interp.model import VLM
from interp.sample import Sample


def random(
    vlm: VLM, sample: Sample, target: int, *, completion: Completion | None = None
) -> xr.DataArray:
    """Uniform noise, a function of the sample's id and the target.

    Raises:
        ValueError: as `ask_one`.
    """
    asked = ask_one(vlm, sample, target, completion)
    seed = zlib.crc32(f"{sample.id}/{target}".encode())
    values = torch.rand(len(asked.visual), generator=torch.Generator().manual_seed(seed))
    return asked.on_grid(values, "random")
