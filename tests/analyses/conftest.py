"""Repeated runs of the reports share work that need not be done for each.

A model that has been certified in this session is not certified again, controls are measured on two
samples, and figures are saved as PNG alone. The certificate itself, and that nothing begins without
one, are tests of their own (marked `fresh_certificate` where a run is wanted that asks for one), as
are the figures' formats (`in_every_format`).
"""

from contextlib import contextmanager

import pytest

from analyses.reports import drawing
from analyses.reports.direct_vs_indirect import measure
from analyses.run import models
from interp.model import families
from interp.model.identity import fingerprint

RIGHT = models.certify
UNDATED = dict(drawing.UNDATED)


@pytest.fixture(autouse=True, scope="session")
def lighter_runs():
    known = {}

    def certify(vlm, samples=None, *, witness=None):
        hashes = (fingerprint(vlm.model, adapter=adapter) for adapter in (False, True))
        key = (*hashes, vlm.model.dtype, families.parts(vlm.model).attn_implementation, witness)
        if key not in known:
            known[key] = RIGHT(vlm, samples, witness=witness)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "certify", certify)
        patch.setattr(measure, "N_CONTROL", 2)
        patch.setattr(drawing, "UNDATED", {})
        yield


@pytest.fixture(scope="session")
def in_every_format(lighter_runs):
    """A context in which figures are saved as PDF, SVG and PNG, as they are for users."""

    @contextmanager
    def formats():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(drawing, "UNDATED", UNDATED)
            yield

    return formats


@pytest.fixture(autouse=True)
def fresh_certificate(request, monkeypatch):
    if request.node.get_closest_marker("fresh_certificate"):
        monkeypatch.setattr(models, "certify", RIGHT)
