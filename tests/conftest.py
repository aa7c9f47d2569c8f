import beartype  # noqa: F401, I001 - before nnsight, which puts .save on every object

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

from tests import odd_models

torch.set_num_threads(int(os.environ.get("TEST_THREADS", "2")))


@pytest.fixture(scope="session")
def processor():
    """The embedded model's processor."""
    from transformers import AutoProcessor

    from interp.model import CHECKPOINTS

    return AutoProcessor.from_pretrained(CHECKPOINTS / "tiny")


@pytest.fixture(params=list(odd_models.SHAPES))
def odd_model(request, processor):
    """Random models of odd shapes, in float64."""
    return odd_models.make(request.param, processor)
