"""Repeated trainings share the certificate of the model that they begin with.

The first training of a model certifies it, as each does for users; that none begins without a
certificate is a test of its own.
"""

import pytest

from interp.model.identity import fingerprint
from train import certified


@pytest.fixture(autouse=True, scope="package")
def certified_once():
    right, known = certified.certify, {}

    def certify(vlm, *given, **options):
        hashes = (fingerprint(vlm.model, adapter=adapter) for adapter in (False, True))
        key = (*hashes, str(vlm.model.dtype), vlm.prompt)
        if key not in known:
            known[key] = right(vlm, *given, **options)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certified, "certify", certify)
        yield
