"""A recipe: what is measured on the samples of a shard, one per report."""

import logging
from dataclasses import dataclass, field
from typing import Protocol

import xarray as xr

from interp.data.sample import Sample

log = logging.getLogger("extraction")


@dataclass(frozen=True)
class Budget:
    """What one call of the model may take."""

    batch_size: int
    max_memory: int
    """Bytes besides the model."""

    def halved(self) -> "Budget":
        """Half of it, at least one sample."""
        return Budget(max(1, self.batch_size // 2), self.max_memory // 2)


@dataclass
class Shard:
    """What was made of a shard's samples."""

    dataset: xr.Dataset | None
    """Of those that are ok; None without one."""
    statuses: dict[str, dict]
    """Of every sample: status ("ok", "skipped", "failed"), reason, and more."""
    facts: dict = field(default_factory=dict)
    """More for the shard's confirmation."""
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Width and height at which the model saw an image, of the samples that are ok."""


class Recipe(Protocol):
    """What is measured; one per report."""

    settings: dict
    """All that decides what the shards hold, besides the samples."""
    facts: dict
    """What is known before the first shard."""

    def measure(self, samples: list[Sample], budget: Budget) -> Shard:
        """Measures the samples of a shard; raises what `is_out_of_memory` knows to get less."""

    def finish(self, run: xr.Dataset, samples: list[Sample]) -> dict:
        """Attributes of the whole run, from all its shards and samples."""


def attempt(call, *arguments):
    """What a call returns, or the exception that says why not; memory of a batch is no reason."""
    try:
        return call(*arguments)
    except (ValueError, RuntimeError, TypeError, MemoryError, OSError) as error:
        log.debug("%s", error, exc_info=True)
        return error


def status(sample: Sample, error: Exception | None) -> dict:
    """What becomes of a sample: skipped for what is wrong with it, failed for anything else."""
    if error is None:
        return {"status": "ok", "reason": ""}
    if isinstance(error, ValueError):
        log.warning("skipped %s: %s", sample.id, error)
        return {"status": "skipped", "reason": str(error)}
    reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    log.error("failed %s: %s", sample.id, reason)
    return {"status": "failed", "reason": reason}
