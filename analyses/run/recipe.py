"""The protocol of a report's measurement: samples of a shard in, a dataset and statuses out."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import xarray as xr

from interp.data.sample import Sample
from interp.model.vlm import VLM

log = logging.getLogger("extraction")
Tick = Callable[[int], None]


def nothing(_n_samples: int) -> None:
    """Nobody watches."""


@dataclass(frozen=True)
class Budget:
    """Limits of one call of the model."""

    batch_size: int
    max_memory: int
    """Bytes besides the model."""

    def halved(self) -> "Budget":
        """Half the batch size (at least 1) and half the memory."""
        return Budget(max(1, self.batch_size // 2), self.max_memory // 2)


@dataclass
class Shard:
    """The measured samples of a shard."""

    dataset: xr.Dataset | None
    """Dataset of the samples that are ok; None without one."""
    statuses: dict[str, dict]
    """Status ("ok", "skipped", "failed"), reason and more of every sample."""
    facts: dict = field(default_factory=dict)
    """More for the shard's confirmation."""
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Width and height at which the model saw an image, of the samples that are ok."""


class Recipe(Protocol):
    """A measurement of samples; one per report."""

    vlm: VLM
    """The model, which nobody changes while a shard is measured."""
    settings: dict
    """All that decides what the shards hold, besides the samples."""
    facts: dict
    """Attributes that are known before the first shard."""

    def measure(self, samples: list[Sample], budget: Budget, tick: Tick = nothing) -> Shard:
        """Measures one shard; lets out-of-memory errors through, to be called again with less.

        Calls `tick` with how many more samples are done.
        """

    def finish(self, run: xr.Dataset, samples: list[Sample]) -> dict:
        """Attributes of the whole run, from all its shards and samples."""


def attempt(call, *arguments):
    """The result of a call, or the exception that says why there is none."""
    try:
        return call(*arguments)
    except (ValueError, RuntimeError, TypeError, MemoryError, OSError) as error:
        log.debug("%s", error, exc_info=True)
        return error


def status(sample: Sample, error: Exception | None) -> dict:
    """Status of a sample: skipped for what is wrong with it, failed for anything else."""
    if error is None:
        return {"status": "ok", "reason": ""}
    if isinstance(error, ValueError):
        reason = str(error).removeprefix(f"{sample.id}: ")  # named once is enough
        log.warning("skipped %s: %s", sample.id, reason)
        return {"status": "skipped", "reason": reason}
    reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    log.error("failed %s: %s", sample.id, reason)
    return {"status": "failed", "reason": reason}
