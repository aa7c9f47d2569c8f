"""Repeated runs of the reports share work that need not be done for each.

A model that has been certified in this session, by either process, is not certified again; controls
are measured on two samples, intervals are of 500 resamples, and figures are saved as PNG alone. The
certificate itself, and that nothing begins without
one, are tests of their own (marked `fresh_certificate` where a run is wanted that asks for one), as
are the figures' formats (`in_every_format`).
"""

import pickle
from contextlib import contextmanager

import pytest

from analyses.reports import drawing
from analyses.reports.direct_vs_indirect import controls, measure, pixels
from analyses.run import models
from interp.model import families
from interp.model.identity import fingerprint

RIGHT = models.certify
UNDATED = dict(drawing.UNDATED)


@pytest.fixture(autouse=True, scope="package")
def lighter_runs(tmp_path_factory, worker_id):
    base = tmp_path_factory.getbasetemp()
    certificates = (base if worker_id == "master" else base.parent) / "certificates"
    certificates.mkdir(exist_ok=True)

    def certify(vlm, samples=None, *, witness=None):
        hashes = (fingerprint(vlm.model, adapter=adapter) for adapter in (False, True))
        parts = families.parts(vlm.model)
        key = "-".join(map(str, (*hashes, vlm.model.dtype, parts.attn_implementation)))
        enough = (True, None) if witness is not False else (True, None, False)
        paths = [certificates / f"{key}-{one}" for one in enough]
        known = next((path for path in paths if path.is_file()), None)
        if known is None:
            found = RIGHT(vlm, samples, witness=witness)
            mine = certificates / f"{worker_id}-{key}-{witness}"
            mine.write_bytes(pickle.dumps(found))
            mine.rename(certificates / f"{key}-{witness}")
            return found
        return pickle.loads(known.read_bytes())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "certify", certify)
        patch.setattr(controls, "N_CONTROL", 2)
        patch.setattr(measure, "N_CONTROL", 2)
        patch.setattr(pixels, "N_PIXELS", 2)
        patch.setattr(measure, "N_PIXELS", 2)
        patch.setattr(drawing, "UNDATED", {})
        patch.setattr("interp.stats.RESAMPLES", 500)
        yield


@pytest.fixture(scope="package")
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
