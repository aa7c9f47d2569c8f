"""One answer of the embedded model with everything that a page can show of it."""

from dataclasses import dataclass

import pytest
import xarray as xr

import interp
from interp.explained import Explained
from interp.pages.contents import Answer

KINDS = ("direct", "bottleneck", "two_hop", "effect", "edge", "slot")


@dataclass(frozen=True)
class Shown:
    explained: Explained
    answer: Answer

    @property
    def datasets(self) -> dict[str, xr.Dataset]:
        return self.answer.datasets


@pytest.fixture(scope="session")
def shown() -> Shown:
    vlm = interp.load_model("tiny", device="cpu")
    sample = interp.load_samples("digits", split="test", limit=8)[6]
    explained = interp.explain(
        vlm, sample.image, sample.question, boxes=sample.boxes, answer=sample.answer
    )
    whole = explained.as_answer(
        kinds=KINDS, partner=sample.twin, n_heads=5, pixels=True, methods=("rollout",)
    )
    return Shown(explained, whole)
