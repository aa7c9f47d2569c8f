"""Samples → a run on disk: the model's text, ledgers and edge effects, batch by batch."""

import logging
import subprocess
from argparse import Namespace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

import interp
from interp import store
from interp.labels import SOURCE_SETS
from interp.sample import Sample, open_image

log = logging.getLogger("extraction")
COMMON = ("model", "revision", "model_hash", "adapter", "adapter_hash", "prompt", "data", "gauge",
          "mode", "norm", "dtype", "attn_implementation", "torch", "transformers", "nnsight",
          "xarray")  # fmt: skip


def extract_run(options: Namespace, path: Path) -> Path:
    """Extracts all samples and returns the run's folder; every sample gets a status.

    Raises:
        ValueError: a model or data set that cannot be loaded, or not one sample that could be read.
    """
    vlm = interp.load_model(
        options.model, adapter=options.adapter, device=options.device, dtype=options.dtype
    )
    samples = interp.load_samples(
        options.data, split=options.split, limit=options.limit, seed=options.seed
    )
    run = store.start_run(path, {"statuses": {}, "code": _commit()})
    statuses = run.attributes["statuses"]
    with tqdm(total=len(samples), desc="samples", disable=None) as bar:
        for first in range(0, len(samples), options.batch_size):
            _extract_batch(vlm, samples[first : first + options.batch_size], options, run)
            bar.update(min(options.batch_size, len(samples) - first))
    if not run.shards:
        reasons = sorted({status["reason"] for status in statuses.values()})
        raise ValueError(
            f"expected at least one readable sample, got {len(samples)} skipped: {reasons[:3]}"
        )
    return path


def _commit() -> str:
    """The package's version, with the commit where the scripts are in a git checkout."""
    asked = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False)
    return f"{version('vlm-interp')} {found.stdout.strip()}".strip()


def _extract_batch(vlm, samples: list[Sample], options: Namespace, run: store.Run) -> None:
    """One shard: those of the samples that work, the others with their reason in the statuses."""
    statuses = run.attributes["statuses"]
    completions = _completions(vlm, samples, options)
    made = []
    for sample in samples:
        try:
            completion = completions[sample.id]
            if isinstance(completion, ValueError):
                raise completion
            made.append((sample, completion, *_extract_one(vlm, sample, completion, options)))
            statuses[sample.id] = {"status": "ok", "reason": ""}
        except ValueError as error:
            statuses[sample.id] = {"status": "skipped", "reason": str(error)}
            log.warning("skipped %s: %s", sample.id, error)
        except torch.OutOfMemoryError as error:
            statuses[sample.id] = {"status": "failed", "reason": str(error)}
            log.error("failed %s: %s", sample.id, error)
    if not made:
        return
    run.attributes.update({k: v for k, v in made[0][2].attrs.items() if k in COMMON})
    run.attributes.update(text=options.text, seed=options.seed, limit=options.limit)
    seen = run.attributes.get("data_hash", "") + "".join(s.fingerprint for s, *_ in made)
    run.attributes["data_hash"] = sha256(seen.encode()).hexdigest()[:16]
    facts = xr.concat([_facts(s, c, d) for s, c, d, _ in made], dim="sample", join="exact")
    run.add(store.stack([d for _, _, d, _ in made], facts))
    if not options.no_images:
        for sample, _, _, size in made:
            target = store.image_path(run.path, sample.id)
            target.parent.mkdir(exist_ok=True)
            open_image(sample.image).resize(size).save(target)


def _completions(vlm, samples: list[Sample], options: Namespace) -> dict:
    """By sample the model's text, or None for the reference text, or why there is none."""
    if options.text == "reference":
        return {s.id: None for s in samples}
    try:
        pairs = [(s.image, s.question) for s in samples]
        texts = vlm.answers(pairs, max_new_tokens=options.max_new_tokens)
        return {s.id: text for s, text in zip(samples, texts, strict=True)}
    except ValueError as error:
        if len(samples) == 1:
            return {samples[0].id: error}
    return {key: text for s in samples for key, text in _completions(vlm, [s], options).items()}


def _extract_one(vlm, sample, completion, options) -> tuple[xr.Dataset, tuple[int, int]]:
    """Ledger and effects of one sample in one dataset, and the size the model saw it at."""
    asked = {"completion": completion, "gauge": options.gauge}
    ledger = interp.extract.ledger(vlm, sample, detail="tokens", **asked)
    effects = interp.extract.effects(vlm, sample, **asked)
    # A sample without boxes has no evidence set: no effect there, and is_defined False.
    effects = effects.reindex(source_set=list(SOURCE_SETS), fill_value=0)
    effects["is_defined"] = effects["is_defined"].astype(bool)
    merged = xr.merge([ledger, effects], join="exact", compat="equals", combine_attrs="override")
    cell = vlm.processor.image_processor.patch_size * vlm.processor.image_processor.merge_size
    size = (int(ledger["column"].max()) + 1) * cell, (int(ledger["row"].max()) + 1) * cell
    return merged, size


def _facts(sample: Sample, completion, dataset: xr.Dataset) -> xr.Dataset:
    """What a report needs to know about a sample."""
    boxes = np.zeros((8, 4)) if sample.boxes is None else sample.boxes[:8]
    n_boxes = 0 if sample.boxes is None else len(boxes)
    text, answer, is_complete = sample.text, sample.answer, True
    if completion is not None:
        text, answer, is_complete = completion.text, completion.answer, completion.is_complete
    return xr.Dataset(
        {
            "question": ("sample", [sample.question]),
            "reference_answer": ("sample", [sample.answer]),
            "text": ("sample", [text]),
            "answer": ("sample", [answer]),
            "is_correct": ("sample", [answer.strip().lower() == sample.answer.strip().lower()]),
            "is_complete": ("sample", [is_complete]),
            "family": ("sample", [sample.family]),
            "box": (
                ("sample", "box_number", "edge"),
                np.pad(boxes, ((0, 8 - len(boxes)), (0, 0)))[None],
            ),
            "n_boxes": ("sample", [n_boxes]),
        },
        coords={"sample": [sample.id]},
    )
