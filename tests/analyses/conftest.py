"""A model that has been certified in this session is not certified again for every run.

The certificate itself, and that nothing begins without one, are tests of their own (marked
`fresh_certificate` where a run is wanted that asks for one).
"""

import pytest

from analyses.run import models
from interp.model.families import parts
from interp.model.state import fingerprint

_CERTIFICATES = {}


@pytest.fixture(autouse=True)
def certified_once(request, monkeypatch):
    if request.node.get_closest_marker("fresh_certificate"):
        return
    right = models.certify

    def certify(vlm, samples=None, *, witness=None):
        hashes = (fingerprint(vlm.model, adapter=adapter) for adapter in (False, True))
        key = (*hashes, vlm.model.dtype, parts(vlm.model).attn_implementation, witness)
        if key not in _CERTIFICATES:
            _CERTIFICATES[key] = right(vlm, samples, witness=witness)
        return _CERTIFICATES[key]

    monkeypatch.setattr(models, "certify", certify)
