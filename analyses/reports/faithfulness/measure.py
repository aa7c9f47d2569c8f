"""Samples → a run on disk: every method's map of the answer, and how faithful it is."""

import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from scipy.stats import spearmanr
from torch.profiler import ProfilerActivity, profile

from analyses.options import Faithfulness
from analyses.run import samples as samples_of
from analyses.run.models import certificate, code_version, load, random_weights
from analyses.run.recipe import Budget, Shard, Tick, attempt, nothing, status
from analyses.run.shards import write_run
from analyses.run.texts import Text, written
from interp.attribution import METHODS
from interp.data.boxes import box_overlap
from interp.data.digits.scenes import object_boxes
from interp.data.images import open_image
from interp.data.sample import Sample
from interp.extract.question import ask
from interp.faithfulness import faithfulness
from interp.inputs.completions import Completion, is_right
from interp.maps.alignment import alignment
from interp.model.identity import fingerprint
from interp.model.vlm import VLM
from interp.store.joining import join
from interp.validate.witness import LARGEST
from interp.vocabulary import describe

N_MEMORY = 10  # samples on which memory is measured
MOST_TARGETS = 4  # answer tokens that are explained, evenly spaced
EXACT = {"edge": "exact edge", "slot": "exact slot", "occlusion": "occlusion"}
SCORES = (
    "alignment",
    "chance",
    "alignment_shuffled",
    "alignment_center",
    "border_share",
    "border_area",
)


def measure_run(options: Faithfulness, path: Path) -> list[Path]:
    """Scores all methods on all samples; what cannot be explained is skipped with its reason.

    Raises:
        ValueError: a model, data set or method that is not there, no sample that can be read, and
            as `shards.write_run`.
    """
    methods = METHODS.named(options.methods or METHODS)
    samples = samples_of.load(options)
    vlm = load(options, options.model, options.adapter)
    recipe = Measurement(vlm, samples, methods, options, certificate=certificate(vlm, options))
    write_run(path, samples, recipe, options)
    return [path]


def probe(vlm: VLM, samples: list[Sample], options: Faithfulness) -> "Measurement":
    """The measurement of a few samples with a model that is not certified, for an estimate."""
    return Measurement(
        vlm, samples, METHODS.named(options.methods or METHODS), options, certificate={}
    )


class Measurement:
    """The recipe: every method's map of a sample's answer, and how faithful it is."""

    def __init__(
        self,
        vlm: VLM,
        samples: list[Sample],
        methods: list[str],
        options: Faithfulness,
        *,
        certificate: dict,
    ):
        """Measures the model's maps and, for the control, those of random weights beside it."""
        self.vlm, self.methods, self.options = vlm, methods, options
        is_small = sum(p.numel() for p in vlm.model.parameters()) < LARGEST  # there will be two
        with_random = options.data == "digits" and is_small
        self.untrained = random_weights(vlm, options.seed) if with_random else None
        # Profiling takes as long as the map.
        self.with_memory = {one.id for one in islice(samples_of.readable(samples), N_MEMORY)}
        self.settings = {
            "report": "faithfulness",
            "methods": methods,
            "limit": options.limit,
            "max_new_tokens": options.max_new_tokens,
            "model": vlm.name,
            "adapter": vlm.adapter,
            "model_hash": vlm.fingerprint,
            "adapter_hash": fingerprint(vlm.model, adapter=True),
            "prompt": vlm.prompt,
            "revision": vlm.revision,
            "device": vlm.device.type,
            "dtype": str(vlm.model.dtype).removeprefix("torch."),
        }
        self.facts = {"certificate": certificate}

    def measure(self, samples: list[Sample], budget: Budget, tick: Tick = nothing) -> Shard:
        """One shard: those of the samples that can be explained, the others with their reason."""
        texts = written(self.vlm, samples, budget, self.options.max_new_tokens)
        statuses, datasets, sizes = {}, [], {}
        for sample, text in zip(samples, texts, strict=True):
            outcome = attempt(self._of_sample, sample, text)
            error = outcome if isinstance(outcome, Exception) else None
            statuses[sample.id] = status(sample, error)
            if error is None:
                datasets.append(outcome.expand_dims("sample"))
                sizes[sample.id] = open_image(sample.image).size
            tick(1)
        facts = {"codes": {code_version(): len(datasets)}}
        return Shard(join(datasets) if datasets else None, statuses, facts, sizes)

    def finish(self, run: xr.Dataset, samples: list[Sample]) -> dict:
        """No attributes of the whole run."""
        return {}

    def _of_sample(self, sample: Sample, text: Text) -> xr.Dataset:
        if isinstance(text, Exception):
            raise text
        with_memory = sample.id in self.with_memory
        return _of_sample(self.vlm, self.untrained, sample, text, self.methods, with_memory)


def _of_sample(
    vlm: VLM,
    untrained: VLM | None,
    sample: Sample,
    completion: Completion,
    methods: list[str],
    with_memory: bool,
) -> xr.Dataset:
    """Everything about one sample; a method that cannot explain it skips the whole sample."""
    if not completion.is_complete:
        raise ValueError(f"{sample.id}: expected a text that ends within the limit, got a cut one")
    targets = _answer_targets(vlm, sample, completion)
    by_method, seconds, extra = {}, {}, {}
    for name in methods:
        by_method[name], seconds[name] = _timed(METHODS[name], vlm, sample, targets, completion)
        call = partial(METHODS[name], vlm, sample, targets[-1], completion=completion)
        extra[name] = _extra_bytes(call, vlm) if with_memory else np.nan
    answer = {name: sum(one.clip(min=0) for one in maps) for name, maps in by_method.items()}
    dataset = faithfulness(vlm, sample, answer, completion=completion)
    dims = ("explainer",)
    maps = np.stack([one.values for one in answer.values()])
    dataset["answer_map"] = (("explainer", "row", "column"), maps)
    dataset["has_mass"] = (dims, [bool((one > 0).any()) for one in answer.values()])
    dataset["seconds"] = (dims, list(seconds.values()))
    dataset["extra_bytes"] = (dims, list(extra.values()))
    dataset["agreement"] = (("explainer", "exact"), _agreement(by_method))
    if sample.boxes is not None:
        scores = [alignment(one, sample.boxes) for one in answer.values()]
        for name in SCORES:
            dataset[name] = (dims, [float(one[name]) for one in scores])
    dataset["asked_excess"] = (("explainer", "weights"), _excess(untrained, sample, answer))
    dataset = describe(dataset.assign_coords(exact=list(EXACT), weights=["trained", "random"]))
    return _with_facts(dataset, sample, completion)


def _answer_targets(vlm: VLM, sample: Sample, completion: Completion | None) -> list[int]:
    """Indices of at most MOST_TARGETS answer tokens, evenly spaced."""
    query = ask(vlm, sample, completion=completion)
    roles = [query.tokens.role[row + 1] for row in query.rows.tolist()]
    answer = np.array([k for k, role in enumerate(roles) if role == "answer"])
    at = np.linspace(0, len(answer) - 1, min(MOST_TARGETS, len(answer))).round().astype(int)
    return answer[np.unique(at)].tolist()


def _timed(
    method: Callable, vlm: VLM, sample: Sample, targets: list[int], completion: Completion
) -> tuple[list[xr.DataArray], float]:
    """The maps of some targets, and seconds per map."""
    _wait(vlm)
    start = time.perf_counter()
    maps = [method(vlm, sample, target, completion=completion) for target in targets]
    _wait(vlm)
    return maps, (time.perf_counter() - start) / len(targets)


def _wait(vlm: VLM) -> None:
    if vlm.device.type == "cuda":
        torch.cuda.synchronize()


def _extra_bytes(call: Callable, vlm: VLM) -> float:
    """Bytes that a call allocates at its peak, as torch counts them."""
    if vlm.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return float(torch.cuda.max_memory_allocated() - before)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return float(np.cumsum([0, *(nbytes for _, nbytes in changes)]).max())


def _agreement(by_method: dict[str, list[xr.DataArray]]) -> np.ndarray:
    """Spearman with each exact map, of signed maps; NaN where a map is constant or not asked."""
    signed = {name: sum(maps).values.ravel() for name, maps in by_method.items()}
    agreement = np.full((len(signed), len(EXACT)), np.nan)
    for k, saliency in enumerate(signed.values()):
        for e, name in enumerate(EXACT.values()):
            if name in signed and np.ptp(saliency) > 0 and np.ptp(signed[name]) > 0:
                agreement[k, e] = spearmanr(saliency, signed[name]).statistic
    return agreement


def _excess(untrained: VLM | None, sample: Sample, answer: dict) -> np.ndarray:
    """Mass on the asked object beyond chance, by weights; NaN without other objects."""
    excess = np.full((len(answer), 2), np.nan)
    if untrained is None or sample.boxes is None or len(sample.boxes) != 1:
        return excess
    boxes = object_boxes(sample)
    if len(boxes) < 2:
        return excess
    # The random model has no text of its own; it explains the reference's.
    last = _answer_targets(untrained, sample, None)[-1]
    for k, (name, saliency) in enumerate(answer.items()):
        blind = METHODS[name](untrained, sample, last).clip(min=0)
        excess[k] = [_asked_mass(m.values, sample.boxes, boxes) for m in (saliency, blind)]
    return excess


def _asked_mass(mass: np.ndarray, asked_boxes: np.ndarray, boxes: np.ndarray) -> float:
    """Mass on the asked object, relative to all objects', minus what ignorance would give."""
    masses = np.array([(mass * box_overlap(b[None], *mass.shape)).sum() for b in boxes])
    is_asked = [(asked_boxes == box).all(axis=1).any() for box in boxes]
    return masses[is_asked].sum() / masses.sum() - 1 / len(boxes) if masses.sum() > 0 else np.nan


def _with_facts(dataset: xr.Dataset, sample: Sample, completion: Completion) -> xr.Dataset:
    """Beside the measurements, what a page tells of the sample."""
    facts = {
        "question": sample.question,
        "answer": completion.answer,
        "reference_answer": sample.answer or "",
        "written": completion.text,
        "family": sample.family,
        "is_correct": is_right(completion.answer, sample.answer),
    }
    boxes = np.zeros((0, 4)) if sample.boxes is None else sample.boxes
    dataset = dataset.assign({name: ((), value) for name, value in facts.items()})
    return dataset.assign(box=(("box_number", "edge"), boxes)).assign_coords(sample=sample.id)
