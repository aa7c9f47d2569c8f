"""Samples → a run on disk, shard by shard: memory, statuses, several processes, going on.

A shard is a fixed list of samples in fixed batches and depends on nothing else, so that a run is
the same, bit for bit, whether one process wrote it or several, at once or after a cut. Processes
are those of `accelerate launch` (or torchrun): number r of n writes the shards r, r + n, r + 2n, …
"""

import logging
import math
from collections import Counter
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

import torch

from analyses.options import Extraction
from analyses.run.images import save_images
from analyses.run.processes import this_process, wait_for_all
from analyses.run.progress import Progress
from analyses.run.recipe import Budget, Recipe, Shard, Tick
from interp.capture.memory import is_out_of_memory
from interp.data.sample import Sample
from interp.model.identity import held
from interp.store import opening as store
from interp.store import writing

log = logging.getLogger("extraction")
PARTS = 8  # of a short run, a shard each
MANY = 4  # samples in a row whose failure is no fault of theirs
PACKAGES = ("torch", "transformers", "nnsight", "xarray", "zarr")


def write_run(path: Path, samples: list[Sample], recipe: Recipe, options: Extraction) -> None:
    """Writes a run, or with `options.resume` what is missing of it.

    Args:
        path: of the run.
        samples: all of them.
        recipe: measures them.
        options: resume, overwrite, shard_size, batch_size, max_memory, threads, no_images.

    Raises:
        ValueError: another run or other files at `path`, another writer, a shard of which every
            sample failed, or not one sample in the run that could be measured.
    """
    by_shard = in_shards(samples, options)
    plan = [[sample.id for sample in shard] for shard in by_shard]
    settings = recipe.settings | _settings(options)
    rank, count = this_process()
    with ExitStack() as stack:
        if rank == 0:
            stack.enter_context(writing.only_writer(path))
            how = {"resume": options.resume, "overwrite": options.overwrite}
            writing.start_run(path, settings, plan, recipe.facts, **how)
        wait_for_all()
        run = writing.Run(path, plan)
        done = _done(run)
        left = [k for k in range(len(plan)) if k not in done]
        again = set(run.confirmed()) - done
        wait_for_all()
        if left and rank == 0:
            log.info("measuring %d of %d shards", len(left), len(plan))
            run.finish(None)  # it is not, from now on
        _write_shards(run, left[rank::count], again, by_shard, recipe, options)
        wait_for_all()
        if rank == 0 and store.read_manifest(path)["attributes"] is None:
            _finish(run, samples, recipe)
        wait_for_all()


def _done(run: writing.Run) -> set[int]:
    """Shards that need not be written (again); what failed may succeed now."""
    states = {
        number: [one["status"] for one in confirmation["statuses"].values()]
        for number, confirmation in run.confirmed().items()
    }
    return {number for number, statuses in states.items() if "failed" not in statuses}


def in_shards(samples: list[Sample], options: Extraction) -> list[list[Sample]]:
    """The samples of each shard: an eighth of a short run, so that a cut loses no more of it."""
    size = options.shard_size or min(options.samples_per_shard, math.ceil(len(samples) / PARTS))
    return [samples[k : k + size] for k in range(0, len(samples), size)]


def _settings(options: Extraction) -> dict:
    names = ("seed", "shuffle", "batch_size", "max_memory", "no_images")
    names += ("attn_implementation", "min_pixels", "max_pixels")
    on_cpu = options.device == "cpu" or not torch.cuda.is_available()
    return {name: getattr(options, name) for name in names} | {
        "data": f"{options.data}/{options.split}",
        "packages": {name: version(name) for name in PACKAGES},
        "threads": torch.get_num_threads() if on_cpu else None,  # sums in another order
    }


def _write_shards(
    run: writing.Run,
    numbers: list[int],
    again: set[int],
    by_shard: list[list[Sample]],
    recipe: Recipe,
    options: Extraction,
) -> None:
    """Measures and commits shards; those that are tried `again` may fail for reasons of their own.

    Raises:
        ValueError: so many samples in a row failed that it is no fault of theirs.
    """
    budget = Budget(options.batch_size, options.max_memory)
    total = sum(len(by_shard[k]) for k in numbers)
    in_a_row: list[dict] = []  # failures since the last sample that did not fail
    with Progress(total, this_process()[0]) as progress:
        for number in numbers:
            samples = by_shard[number]
            at = progress.done
            with held(recipe.vlm.model):
                shard, used = _within_memory(recipe, samples, budget, progress.tick)
            facts = shard.facts | {"statuses": shard.statuses}
            if used != budget:
                facts["reduced"] = {store.shard_path(run.path, number).name: vars(used)}
            failed = [one for one in shard.statuses.values() if one["status"] == "failed"]
            if number not in again:
                in_a_row = [*in_a_row, *failed] if len(failed) == len(samples) else []
            if len(in_a_row) >= MANY:
                raise ValueError(
                    f"expected samples that can be measured, got {len(in_a_row)} that all failed: "
                    f"{in_a_row[0]['reason']}; mend that and go on with --resume"
                )
            if not options.no_images:
                save_images(run.path, samples, shard.sizes)
            run.commit(number, shard.dataset, facts)
            progress.tick(at + len(samples) - progress.done)


def _within_memory(
    recipe: Recipe, samples: list[Sample], budget: Budget, tick: Tick
) -> tuple[Shard, Budget]:
    """The shard, with half of the budget as often as memory runs out."""
    try:
        return recipe.measure(samples, budget, tick), budget
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or budget.batch_size == 1:
            raise
    torch.cuda.empty_cache()  # outside of except: the traceback holds what is to be freed
    log.warning("out of memory with %s; going on with half", budget)
    return _within_memory(recipe, samples, budget.halved(), tick)


def _finish(run: writing.Run, samples: list[Sample], recipe: Recipe) -> None:
    try:
        opened = store.open_run(run.path, partial=True)
    except store.Empty as error:
        statuses = error.attributes["statuses"].values()
        reasons = Counter(one["reason"] for one in statuses).most_common(3)
        raise ValueError(
            f"expected at least one readable sample, got {len(samples)} without: "
            + "; ".join(reason for reason, _ in reasons)
        ) from error
    run.finish(recipe.finish(opened, samples))


def counts(paths: list[Path]) -> dict[str, int]:
    """How many samples of some runs were ok, skipped and failed, as their manifests say."""
    by_status = Counter(
        one["status"]
        for path in paths
        for said in writing.Run(path, store.read_manifest(path)["shards"]).confirmations().values()
        for one in said["statuses"].values()
    )
    return {name: by_status[name] for name in ("ok", "skipped", "failed")}
