import beartype  # noqa: F401, I001 - before nnsight, which puts .save on every object

import json
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hypothesis
import pytest
import torch

from tests.support import checking, odd_models  # noqa: F401 - the type checker of the tests

# `make soak` runs ten times as much of what is repeated, and more examples.
hypothesis.settings.register_profile("default", max_examples=8, deadline=None, derandomize=True)
hypothesis.settings.register_profile("soak", max_examples=1000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
torch.set_num_threads(int(os.environ.get("TEST_THREADS", "2")))


_TRIED = []


def note(fault: str, count: int, happens: str) -> None:
    """Adds to what was tried."""
    known = next((one for one in _TRIED if one["fault"] == fault), None)
    if known is None:
        _TRIED.append({"fault": fault, "tried": count, "happens": happens})
    else:
        known["tried"] += count


@pytest.fixture
def tried():
    """Notes what a test tried, after it has seen what happens: (fault, how often, what happens)."""
    return note


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """Takes over what a worker of xdist has tried; one that crashed has no output."""
    for one in getattr(node, "workeroutput", {}).get("tried", ()):
        note(one["fault"], one["tried"], one["happens"])


def pytest_sessionfinish(session, exitstatus):
    """`make soak` keeps what was tried where the documentation finds it, unless it was cut off."""
    is_whole = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    path = os.environ.get("FAULTS_JSON") if is_whole else None
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["tried"] = _TRIED
    elif path:
        content = {"failed_tests": session.testsfailed, "tried": _TRIED}
        Path(path).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


@pytest.fixture
def processor(request):
    """The embedded model's processor, or that of a random model's family where it has its own."""
    drawn = getattr(request.node, "callspec", None)
    shapes = [drawn.params.get(name) for name in ("odd_model", "shape")] if drawn else []
    return odd_models.processor_of(next(filter(None, shapes), None))


@pytest.fixture(scope="module")
def tiny():
    """The embedded model, loaded anew for every file, which may do what it likes with it."""
    import interp

    return interp.load_model("tiny", device="cpu")


@pytest.fixture(params=odd_models.ALL)
def odd_model(request, processor):
    """Random models of odd shapes, in float64."""
    return odd_models.make(request.param, processor)
