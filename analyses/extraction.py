"""Samples → a run on disk: the model's text and everything measured on it, batch by batch."""

import json
import logging
import shutil
import subprocess
from argparse import Namespace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm
from transformers.utils import find_adapter_config_file

import interp
from analyses.comparison import compared_path
from analyses.controls import measure_controls
from analyses.measuring import Measurer
from interp import store
from interp.inputs import Completion
from interp.model import VLM, resolve
from interp.references import Pool
from interp.sample import Sample, open_image
from interp.validate import certify

log = logging.getLogger("extraction")
POOL = 200  # samples from which references are drawn
COMMON = ("model", "revision", "model_hash", "adapter", "adapter_hash", "prompt", "data", "gauge",
          "mode", "norm", "dtype", "attn_implementation", "torch", "transformers", "nnsight",
          "xarray")  # fmt: skip


def extract_runs(options: Namespace, path: Path) -> Path:
    """Extracts all samples, and for `--compare` the same texts through a second model.

    Every sample gets a status. The second run lies beside the first, at `compared_path`.

    Raises:
        ValueError: a model or data set that cannot be loaded, or not one sample that could be read.
        NotCertified: the extractor fails an oracle on one of the models.
    """
    vlm = _load(options, options.model, options.adapter)
    samples = interp.load_samples(
        options.data, split=options.split, limit=options.limit, seed=options.seed
    )
    shutil.rmtree(compared_path(path), ignore_errors=True)
    texts: dict[str, Completion | None] = {}
    _extract_run(_measurer(vlm, samples, options), samples, options, path, texts)
    if options.compare is not None:
        second = _load_compared(options, vlm.prompt)
        if second.processor.tokenizer.get_vocab() != vlm.processor.tokenizer.get_vocab():
            raise ValueError(
                f"expected a model with the first one's tokens, got {options.compare}; compare an "
                "adapter or a fine-tuned copy"
            )
        del vlm
        _extract_run(
            _measurer(second, samples, options), samples, options, compared_path(path), texts
        )
    return path


def _load(options: Namespace, model: str, adapter: str | None, prompt: str | None = None) -> VLM:
    return interp.load_model(
        model, adapter=adapter, prompt=prompt, device=options.device, dtype=options.dtype
    )


def _load_compared(options: Namespace, prompt: str) -> VLM:
    """The second model, under the first one's prompt: an adapter on the first, or of its own."""
    if find_adapter_config_file(resolve(options.compare)[0]) is not None:
        return _load(options, options.model, options.compare, prompt)
    return _load(options, options.compare, None, prompt)


def _measurer(vlm: VLM, samples: list[Sample], options: Namespace) -> Measurer:
    pool = None if options.effects == "edge" else Pool(vlm, readable(samples)[:POOL])
    return Measurer(vlm, pool, options.gauge, options.seed)


def readable(samples: list[Sample]) -> list[Sample]:
    """Samples whose image opens; the others get their reason when they are measured."""
    found = []
    for sample in samples:
        try:
            open_image(sample.image)
        except ValueError as error:
            log.debug("not in the pool: %s", error)
            continue
        found.append(sample)
    return found


def _extract_run(
    measurer: Measurer, samples: list[Sample], options: Namespace, path: Path, texts: dict
) -> None:
    """One run; `texts` are taken where they are there, and noted where the model wrote them."""
    is_first = not texts
    settings = {name: getattr(options, name) for name in ("text", "seed", "limit", "effects")}
    certificate = json.loads(certify(measurer.vlm, witness=options.witness).to_json())
    empty = {"statuses": {}, "data_hashes": {}, "code": code_version(), "certificate": certificate}
    run = store.start_run(path, empty | settings)
    statuses, size = run.attributes["statuses"], options.batch_size
    with tqdm(total=len(samples), desc="samples", disable=None) as bar:
        for batch in (samples[k : k + size] for k in range(0, len(samples), size)):
            _extract_batch(measurer, batch, options, run, texts)
            bar.update(len(batch))
    hashes = "".join(sorted(run.attributes["data_hashes"].values()))
    run.attributes["data_hash"] = sha256(hashes.encode()).hexdigest()[:16]
    if not run.shards:
        run.confirm()
        reasons = sorted({status["reason"] for status in statuses.values()})
        raise ValueError(
            f"expected at least one readable sample, got {len(samples)} skipped: {reasons[:3]}"
        )
    if measurer.pool is not None and is_first:
        well = [sample for sample in samples if statuses[sample.id]["status"] == "ok"]
        written = [texts[sample.id] for sample in well]
        run.attributes["controls"] = measure_controls(measurer, well, written)
    run.confirm()


def code_version() -> str:
    """The package's version, with the commit where the scripts are in a git checkout."""
    asked = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False)
    return f"{version('vlm-interp')} {found.stdout.strip()}".strip()


def _extract_batch(
    measurer: Measurer, samples: list[Sample], options: Namespace, run: store.Run, texts: dict
) -> None:
    """One shard: those of the samples that work, the others with their reason in the statuses."""
    made, fingerprints = [], run.attributes["data_hashes"]
    if not all(sample.id in texts for sample in samples):
        written = _completions(measurer.vlm, samples, options)
        texts |= {sample.id: text for sample, text in zip(samples, written, strict=True)}
    for sample in samples:
        completion = texts[sample.id]
        status = _status(sample, completion)
        try:
            if isinstance(completion, Exception):
                raise completion
            measured = measurer.measure(sample, completion)
            made.append((sample, completion, measured, _size(measurer.vlm, measured)))
            fingerprints[sample.id] = sample.fingerprint
        except ValueError as error:
            status |= {"status": "skipped", "reason": str(error)}
            log.warning("skipped %s: %s", sample.id, error)
        except torch.OutOfMemoryError as error:
            status |= {"status": "failed", "reason": str(error)}
            log.error("failed %s: %s", sample.id, error)
        run.attributes["statuses"][sample.id] = status
    if made:
        run.attributes.update({k: v for k, v in made[0][2].attrs.items() if k in COMMON})
        run.add(store.stack([d for _, _, d, _ in made], _facts(made)))
    run.confirm()
    if not options.no_images:
        for sample, _, _, size in made:
            target = store.image_path(run.path, sample.id)
            target.parent.mkdir(exist_ok=True)
            open_image(sample.image).resize(size).save(target)


def _status(sample: Sample, completion) -> dict:
    """What becomes of a sample, and whether the model, if it was asked, was right."""
    status = {"status": "ok", "reason": "", "family": sample.family}
    if isinstance(completion, Completion):
        status["is_correct"] = is_right(completion.answer, sample.answer)
        status["is_complete"] = completion.is_complete
    return status


def is_right(answer: str, reference: str) -> bool:
    """Exact match after lower-casing and stripping."""
    return answer.strip().lower() == reference.strip().lower()


def _completions(vlm, samples: list[Sample], options: Namespace) -> list:
    """For each sample the model's text, None for the reference text, or why there is none."""
    if options.text == "reference":
        return [None] * len(samples)
    try:
        pairs = [(s.image, s.question) for s in samples]
        return vlm.answers(pairs, max_new_tokens=options.max_new_tokens)
    except (ValueError, torch.OutOfMemoryError) as error:
        if len(samples) == 1:
            return [error]
    return [text for sample in samples for text in _completions(vlm, [sample], options)]


def _size(vlm, measured: xr.Dataset) -> tuple[int, int]:
    """Width and height at which the model saw the image, in pixels."""
    cell = vlm.processor.image_processor.patch_size * vlm.processor.image_processor.merge_size
    return (int(measured["column"].max()) + 1) * cell, (int(measured["row"].max()) + 1) * cell


def _facts(made: list[tuple]) -> xr.Dataset:
    """What a report needs to know about the samples of a shard."""
    samples = [sample for sample, *_ in made]
    completions = [completion for _, completion, *_ in made]
    none = np.zeros((0, 4))
    boxes = [none if sample.boxes is None else sample.boxes for sample in samples]
    most = max(1, *(len(b) for b in boxes))
    padded = np.stack([np.pad(b, ((0, most - len(b)), (0, 0))) for b in boxes])
    texts = [s.text if c is None else c.text for s, c in zip(samples, completions, strict=True)]
    answers = [
        s.answer if c is None else c.answer for s, c in zip(samples, completions, strict=True)
    ]
    return xr.Dataset(
        {
            "question": ("sample", [s.question for s in samples]),
            "reference_answer": ("sample", [s.answer for s in samples]),
            "text": ("sample", texts),
            "answer": ("sample", answers),
            "is_correct": (
                "sample",
                [is_right(a, s.answer) for a, s in zip(answers, samples, strict=True)],
            ),
            "family": ("sample", [s.family for s in samples]),
            "box": (("sample", "box_number", "edge"), padded),
            "n_boxes": ("sample", [len(b) for b in boxes]),
        },
        coords={"sample": [s.id for s in samples]},
    )
