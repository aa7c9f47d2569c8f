"""Estimate of an extraction's shapes, disk and memory, before any weights are loaded.

Shapes and bytes are those of a real shard: a few samples go through the same recipe on a narrow
model with the layers, heads and vocabulary of the one that was asked for, and random weights.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import islice
from pathlib import Path

import numpy as np
import xarray as xr

from analyses.options import DirectVsIndirect, Extraction
from analyses.run import samples as samples_of
from analyses.run.duration import seconds_per_sample, writer
from analyses.run.progress import span
from analyses.run.recipe import Budget, Recipe
from analyses.run.shards import in_shards
from interp.capture.memory import Load, needed
from interp.data.sample import Sample
from interp.inputs import prompts as inputs
from interp.loading import outline
from interp.model import families
from interp.model.vlm import PROMPTS, VLM
from interp.store import writing

N_PROBES = 8  # samples that are tokenized
N_WORDS = 40  # of a text that nobody knows
N_STORED = 1  # of those, samples that are measured on the narrow model
GIB = 2**30


def tell(report: str, options: Extraction) -> None:
    """Prints the estimate.

    Raises:
        ValueError: a model or data set that is not there, or samples that cannot be measured.
    """
    samples = samples_of.load(options)
    probes = [_with_text(one) for one in islice(samples_of.readable(samples), N_PROBES)]
    if not probes:
        raise ValueError("expected at least one readable sample, got none")
    name = options.before if report == "before_after" else options.model
    pixels = (options.min_pixels, options.max_pixels)
    vlm = outline(name, dtype=options.dtype, pixels=pixels)
    lengths = [_lengths(vlm, sample) for sample in probes]
    shards = in_shards(samples, options)
    print(f"{len(samples)} samples in {len(shards)} shards of at most {len(shards[0])}")
    tokens, targets = (np.array(column) for column in zip(*lengths, strict=True))
    print(
        f"tokens  {_range(tokens)} per sample, {_range(targets)} of them targets, as the samples'"
    )
    known = all(one.answer is not None for one in samples)
    whose = "own texts have them" if known else f"own texts, or of {N_WORDS} words, have them"
    print(f"        {whose}; a text of the model may have {options.max_new_tokens}")
    _tell_memory(vlm, options, int(tokens.max()), int(targets.max()))
    measure = import_module(f"analyses.reports.{report}.measure")
    n_arms = 1 + len(options.after) if report == "before_after" else 1
    stored = probes[:N_STORED]
    plan = Plan(name, options, lambda vlm: measure.probe(vlm, stored, options), n_arms)
    _tell_disk(plan, stored, len(samples), len(shards))
    _tell_time(plan, probes[0], len(samples))
    if report == "direct_vs_indirect" and measure.plays_games(options):
        judged, pool = measure.scenes(options)
        few = list(islice(samples_of.readable(pool), N_PROBES))
        _tell_games(
            replace(plan, recipe_of=lambda vlm: measure.probe_games(vlm, few, options)),
            [_with_text(one) for one in few[:N_STORED]],
            judged,
        )


@dataclass(frozen=True)
class Plan:
    """A run that is estimated."""

    name: str
    """Name of the model."""
    options: Extraction
    recipe_of: Callable[[VLM], Recipe]
    n_arms: int = 1
    """How many models the run is of."""

    @property
    def pixels(self) -> tuple[int | None, int | None]:
        """Bounds between which images are resized."""
        return self.options.min_pixels, self.options.max_pixels


def _lengths(vlm: VLM, sample: Sample) -> tuple[int, int]:
    sequence = inputs.teacher_forced(vlm.processor, sample, PROMPTS[vlm.prompt])
    return len(sequence.tokens.ids), len(sequence.tokens.targets())


def _with_text(sample: Sample) -> Sample:
    """The sample; one without an answer with one of `N_WORDS` words."""
    return sample if sample.answer is not None else replace(sample, answer="what " * N_WORDS)


def _range(numbers: np.ndarray) -> str:
    low, middle, high = numbers.min(), np.median(numbers), numbers.max()
    return f"{low:.0f} to {high:.0f} (median {middle:.0f})" if high > low else f"{low:.0f}"


def _size(n_bytes: float) -> str:
    for unit, power in (("GiB", 30), ("MiB", 20)):
        if n_bytes > 2**power / 10:
            return f"{n_bytes / 2**power:.2f} {unit}"
    return f"{n_bytes / 2**10:.0f} KiB"


def _tell_memory(vlm: VLM, options: Extraction, n_tokens: int, n_targets: int) -> None:
    weights = sum(p.numel() * p.element_size() for p in vlm.model.parameters())
    size = next(vlm.model.parameters()).element_size()
    is_full = isinstance(options, DirectVsIndirect) and options.detail == "full"
    load = Load(n_tokens, n_targets, n_variants=8, is_full=is_full)
    parts = families.parts(vlm.model)
    per_sample = needed(parts, [load], size)
    fitting = next(
        k
        for k in range(1, 1025)
        if k == 1024 or needed(parts, [load] * (k + 1), size) > options.max_memory
    )
    print(f"memory  {weights / GIB:.2f} GiB of weights ({vlm.model.dtype}) in every process;")
    capacity = f"{fitting} at once in" if per_sample <= options.max_memory else "more than"
    print(
        f"        {per_sample / GIB:.2f} GiB for a sample, {capacity} --max-memory "
        f"{options.max_memory / GIB:.2f} GiB"
    )


def _tell_disk(plan: Plan, probes: list[Sample], n: int, n_shards: int) -> None:
    shard, stored = _stored(plan, probes)
    print("arrays  of one sample, with their dimensions:")
    _tell_arrays(shard)
    total, n_files = stored.of(n, n_shards)
    print(f"disk    {_size(total)} in {n_files} files, images apart:")
    each, fixed = stored.each / 2**10, stored.fixed / 2**10
    print(
        f"        {each:.0f} KiB per sample and {fixed:.0f} KiB per shard, as a narrow random model"
    )
    print("        stores them; longer texts take more in proportion")


@dataclass(frozen=True)
class Stored:
    """Bytes and files of a run of all its models."""

    each: float
    """Bytes of a sample."""
    fixed: float
    """Bytes of a shard besides."""
    n_files: int
    """Files of a shard."""

    def of(self, n_samples: int, n_shards: int) -> tuple[float, int]:
        """Bytes and files of so many samples in so many shards."""
        return n_samples * self.each + n_shards * self.fixed, self.n_files * n_shards


def _stored(plan: Plan, probes: list[Sample]) -> tuple[xr.Dataset, Stored]:
    """A shard of the probes, measured on a narrow model, and what it takes on disk.

    Raises:
        ValueError: samples that cannot be measured.
    """
    narrow = outline(plan.name, is_narrow=True, pixels=plan.pixels)
    recipe = plan.recipe_of(writer(narrow, probes, generates=False))
    shard = recipe.measure(probes, Budget(1, plan.options.max_memory))
    if shard.dataset is None:
        reasons = {one["reason"] for one in shard.statuses.values()}
        raise ValueError(f"expected samples that can be measured, got none: {sorted(reasons)}")
    with tempfile.TemporaryDirectory() as folder:
        run = writing.start_run(Path(folder) / "run", {}, [[sample.id for sample in probes]])
        run.commit(0, shard.dataset, {"statuses": shard.statuses})
        files = [f for f in run.path.rglob("*") if f.is_file()]
        fixed = sum(f.stat().st_size for f in files if f.suffix == ".json")
        each = (sum(f.stat().st_size for f in files) - fixed) / len(probes)
    n_arms = plan.n_arms
    return shard.dataset, Stored(n_arms * each, n_arms * fixed, n_arms * len(files))


def _tell_time(plan: Plan, sample: Sample, n: int) -> None:
    each = plan.n_arms * seconds_per_sample(plan.name, plan.recipe_of, plan.options, sample)
    print(f"time    about {span(n * each)} in one process here, {each:.3g} s a")
    print("        sample: layer by layer from models of its width with one and two of them, one")
    print("        sample at a time, without loading, certificate and longer texts")


def _tell_games(plan: Plan, probes: list[Sample], judged: list[Sample]) -> None:
    """The verdict's run, which is not in the figures above."""
    n, n_shards = len(judged), len(in_shards(judged, plan.options))
    total, n_files = _stored(plan, probes)[1].of(n, n_shards)
    each = seconds_per_sample(plan.name, plan.recipe_of, plan.options, probes[0])
    print(f"games   {n} samples more, for the verdict, in OUT/run-games: about {span(n * each)},")
    print(f"        {each:.3g} s a sample, and {_size(total)} in {n_files} files, estimated")
    print("        likewise; --effects edge leaves them out")


def _tell_arrays(dataset: xr.Dataset) -> None:
    """The largest, by name."""
    n_samples = dataset.sizes["sample"]
    largest = sorted(dataset.variables.items(), key=lambda item: -item[1].nbytes)
    for name, array in largest[:12]:
        share = array.nbytes / n_samples / 2**10
        dims = ", ".join(f"{dim} {size}" for dim, size in array.sizes.items())
        print(f"        {name:<18} {array.dtype!s:<8} {share:9.1f} KiB  ({dims})")
    rest = sum(array.nbytes for _, array in largest[12:]) / n_samples / 2**10
    print(f"        {len(largest[12:])} others               {rest:9.1f} KiB")
