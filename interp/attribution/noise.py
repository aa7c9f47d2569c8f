"""Noise: the score of a method that knows nothing."""

import zlib

import torch
import xarray as xr

from interp.attribution.target import ask_one
from interp.data.sample import Sample
from interp.inputs.completions import Completion
from interp.maps.named import Wanted
from interp.model.vlm import VLM


def random(
    vlm: VLM, sample: Sample, target: Wanted, *, completion: Completion | None = None
) -> xr.DataArray:
    """Uniform noise, a function of the sample's id and the target.

    Raises:
        ValueError: as `ask_one`.
    """
    prefilled = ask_one(vlm, sample, target, completion)
    seed = zlib.crc32(f"{sample.id}/{prefilled.index}".encode())
    values = torch.rand(len(prefilled.visual), generator=torch.Generator().manual_seed(seed))
    return prefilled.on_grid(values, "random")
