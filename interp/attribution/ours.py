"""The maps of `interp.extract.maps` in the signature of the comparison methods."""

import xarray as xr

from interp import extract
from interp.attribution.target import index_of
from interp.data.images import blank, open_image
from interp.data.sample import Sample
from interp.extract.question import ask
from interp.inputs.completions import Completion
from interp.maps.grid import one_map
from interp.maps.named import Wanted
from interp.model.vlm import VLM, embed


def _map(vlm, sample, target: Wanted, completion, kind: str, **options) -> xr.DataArray:
    index = index_of(ask(vlm, sample, completion=completion), target)
    dataset = extract.maps(
        vlm, sample, completion=completion, kinds=(kind,), only=[index], **options
    )
    return one_map(dataset, 0, kind).assign_attrs(method=kind)


def direct(
    vlm: VLM, sample: Sample, target: Wanted, *, completion: Completion | None = None
) -> xr.DataArray:
    """Eq. 1 of Saliency-R1, signed; raises ValueError as `ask_one`."""
    return _map(vlm, sample, target, completion, "direct")


def bottleneck(
    vlm: VLM, sample: Sample, target: Wanted, *, completion: Completion | None = None
) -> xr.DataArray:
    """The thinking bottleneck of Saliency-R1 §3.2, signed; raises ValueError as `ask_one`."""
    return _map(vlm, sample, target, completion, "bottleneck")


def two_hop(
    vlm: VLM, sample: Sample, target: Wanted, *, completion: Completion | None = None
) -> xr.DataArray:
    """Two executable hops through the thinking, signed; raises ValueError as `ask_one`."""
    return _map(vlm, sample, target, completion, "two_hop")


def first_order(
    vlm: VLM, sample: Sample, target: Wanted, *, completion: Completion | None = None
) -> xr.DataArray:
    """Integrated first-order effects (METHODS.md 3.4), signed; raises ValueError as `ask_one`."""
    return _map(vlm, sample, target, completion, "effect")


def edge(
    vlm: VLM, sample: Sample, target: Wanted, *, completion: Completion | None = None
) -> xr.DataArray:
    """Exact effects of cutting each patch's edge (3.5), signed; raises ValueError as `ask_one`."""
    return _map(vlm, sample, target, completion, "edge")


def slot(
    vlm: VLM, sample: Sample, target: Wanted, *, completion: Completion | None = None
) -> xr.DataArray:
    """Exact effects of each patch's slot out of a blank image; raises ValueError as `ask_one`."""
    reference = embed(vlm, blank(vlm.processor, open_image(sample.image).size))[0]
    return _map(vlm, sample, target, completion, "slot", reference=reference)
