"""Models before and after training → a run: what each writes, where its maps and effects lie.

Everything is measured on the text that a model writes itself (own) and on one text teacher-forced
through all (same): the samples' reference, or what the first model wrote. On the same text a
difference is the weights' doing.
"""

import json
import logging
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

import interp
from analyses.arms_measure import measure_arm
from analyses.extraction import code_version, readable
from interp import store
from interp.adapters import base_of
from interp.inputs import Completion
from interp.labels import describe
from interp.model import VLM, resolve
from interp.sample import Sample, open_image
from interp.validate import certify

log = logging.getLogger("before_after")
CURVES = "curves.csv"


def run_arms(options: Namespace, path: Path) -> Path:
    """Measures all models on all samples; what cannot be measured is NaN, with its reason.

    Raises:
        ValueError: a model or data set that is not there, models with other tokens or prompts, or
            no sample that can be read and has boxes.
        NotCertified: the extractor fails an oracle on one of the models.
    """
    given = {_label(name): name for name in (options.before, *options.after)}
    if len(given) < 1 + len(options.after):
        raise ValueError(
            f"expected models with different names, got {options.before} and {options.after}"
        )
    samples, statuses = _usable(
        interp.load_samples(
            options.data, split=options.split, limit=options.limit, seed=options.seed
        )
    )
    is_reference = options.text == "reference" or (
        options.text is None and all(one.thinking for one in samples)
    )
    texts: list[Completion | None] = [None] * len(samples) if is_reference else []
    arms, facts, reasons = [], {}, {}
    for label, name, vlm in _models(given, options):
        certificate = json.loads(certify(vlm, witness=options.witness).to_json())
        found, reasons[label] = measure_arm(vlm, samples, texts, options)
        arms.append(found)
        facts[label] = {"base": vlm.name, "model_hash": vlm.fingerprint, "certificate": certificate}
        facts[label] |= _reward(name)
    joined = xr.concat(arms, pd.Index(list(given), name="arm")).assign(_facts(samples))
    attributes = {
        "statuses": statuses, "reasons": reasons, "arms": facts, "code": code_version(),
        "data": f"{options.data}/{options.split}", "seed": options.seed,
        "text": "reference" if is_reference else "before",
        "curves": {label: _curve(name) for label, name in given.items()},
    }  # fmt: skip
    run = store.start_run(path, attributes)
    run.add(describe(joined.assign_coords(sample=[one.id for one in samples])))
    if not options.no_images:
        _save_images(path, samples)
    return path


def _models(given: dict[str, str], options: Namespace) -> Iterator[tuple[str, str, VLM]]:
    """Label, name and model, one after the other; raises ValueError as `run_arms`."""
    # The first model is asked, and sees images, as its adapters were trained.
    trained = _same_training([said for said in map(_said, options.after) if said])
    vocabulary = first = None
    for label, name in given.items():
        vlm = interp.load_model(name, device=options.device, dtype=options.dtype, **trained)
        tokens = vlm.processor.tokenizer.get_vocab(), vlm.prompt
        vocabulary, first = vocabulary or tokens, first or vlm.fingerprint
        if tokens != vocabulary:
            raise ValueError(
                f"expected the tokens and prompt of {options.before}, got others in {name}"
            )
        if vlm.adapter and vlm.fingerprint != first:
            raise ValueError(f"expected adapters of {options.before}, got {name} of {vlm.name}")
        yield label, name, vlm


def _save_images(path: Path, samples: list[Sample]) -> None:
    for sample in samples:
        target = store.image_path(path, sample.id)
        target.parent.mkdir(exist_ok=True)
        open_image(sample.image).save(target)


def _label(name: str) -> str:
    """A folder by its own name, or its parent's where it is called final; others as given."""
    path = Path(name)
    if not path.is_dir():
        return name
    return path.parent.name if path.name == "final" else path.name


def _usable(samples: list[Sample]) -> tuple[list[Sample], dict]:
    """Samples that open and have boxes, and what becomes of each."""
    kept = [one for one in readable(samples) if one.boxes is not None]
    ids = {one.id for one in kept}
    reason = "no readable image, or no boxes"
    statuses = {
        one.id: {"status": "ok", "reason": ""} if one.id in ids
        else {"status": "skipped", "reason": reason} for one in samples
    }  # fmt: skip
    if len(kept) < len(samples):
        log.warning("%d of %d samples left out: %s", len(samples) - len(kept), len(samples), reason)
    if not kept:
        raise ValueError("expected samples with boxes and images that can be read, got none")
    return kept, statuses


def _facts(samples: list[Sample]) -> dict:
    """What a page tells of the samples."""
    most = max(len(one.boxes) for one in samples)
    boxes = np.full((len(samples), most, 4), np.nan)
    for k, one in enumerate(samples):
        boxes[k, : len(one.boxes)] = one.boxes
    return {
        "question": ("sample", [one.question for one in samples]),
        "answer": ("sample", [one.answer for one in samples]),
        "family": ("sample", [one.family for one in samples]),
        "box": (("sample", "box_number", "edge"), boxes),
    }


def _said(name: str) -> dict:
    """What an adapter says of its training; nothing for other models."""
    return base_of(resolve(name)[0]) or {}


def _same_training(said: list[dict]) -> dict:
    """Prompt and bounds of the image's size that all adapters were trained with.

    Raises:
        ValueError: they differ.
    """
    found = {}
    for name in ("prompt", "min_pixels", "max_pixels"):
        values = {one.get(name) for one in said}
        if len(values) > 1:
            raise ValueError(f"expected adapters of one {name}, got {sorted(map(str, values))}")
        found[name] = values.pop() if values else None
    return found


def _reward(name: str) -> dict:
    """Which map a model was paid for: "none" for accuracy and format alone, "" if it says nothing.

    And which run it was, so that a control of the same seed and scenes can be told.
    """
    said = _said(name)
    paid = said["map"] if said.get("saliency_weight", 1) > 0 and "map" in said else "none"
    run = [said.get(key) for key in ("seed", "sample_seed", "data", "split")]
    return {"map": paid if "map" in said else "", "training": run}


def _curve(name: str) -> dict | None:
    """The training's log beside an adapter, by column; None for a model without one."""
    folder = Path(resolve(name)[0])
    if not (folder / CURVES).is_file():
        return None
    return pd.read_csv(folder / CURVES).to_dict("list")
