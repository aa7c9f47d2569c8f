"""Models before and after training → a run: what each writes, where its maps and effects lie.

Everything is measured on the text that a model writes itself (own) and on one text teacher-forced
through all (same): the samples' reference, or what the first model wrote. On the same text a
difference is the weights' doing.
"""

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

import interp
from analyses.reports.before_after.measure import Arm
from analyses.run.models import certificate
from analyses.run.processes import this_device
from analyses.run.shards import write_run
from interp.loading import resolve
from interp.model.adapters import base_of
from interp.model.vlm import VLM

CURVES = "curves.csv"


def run_arms(options: Namespace, path: Path) -> Path:
    """Measures all models on all samples, a run each, numbered; what cannot be measured is NaN.

    Raises:
        ValueError: a model or data set that is not there, models with other tokens or prompts,
            no sample that can be read and has boxes, and as `shards.write_run`.
        NotCertified: the extractor fails an oracle on one of the models.
    """
    given = {_label(name): name for name in (options.before, *options.after)}
    if len(given) < 1 + len(options.after):
        raise ValueError(
            f"expected models with different names, got {options.before} and {options.after}"
        )
    samples = interp.load_samples(
        options.data, split=options.split, limit=options.limit, seed=options.seed
    )
    is_reference = options.text == "reference" or (
        options.text is None and all(one.thinking for one in samples)
    )
    for number, (label, name, vlm) in enumerate(_models(given, options)):
        texts_of = path / "0" if number and not is_reference else None
        text = "reference" if is_reference else "before"
        said = certificate(vlm, options)
        arm = Arm(vlm, samples, options, text, certificate=said, texts_of=texts_of)
        arm.settings["arm"] = label
        arm.facts |= {"reward": _reward(name), "curve": _curve(name)}
        write_run(path / str(number), samples, arm, options)
    return path


def _models(given: dict[str, str], options: Namespace) -> Iterator[tuple[str, str, VLM]]:
    """Label, name and model, one after the other; raises ValueError as `run_arms`."""
    # The first model is asked, and sees images, as its adapters were trained.
    trained = _same_training([said for said in map(_said, options.after) if said])
    vocabulary = first = None
    device = this_device(options.device)
    for label, name in given.items():
        vlm = interp.load_model(name, device=device, dtype=options.dtype, **trained)
        tokens = vlm.processor.tokenizer.get_vocab(), vlm.prompt
        vocabulary, first = vocabulary or tokens, first or vlm.fingerprint
        if tokens != vocabulary:
            raise ValueError(
                f"expected the tokens and prompt of {options.before}, got others in {name}"
            )
        if vlm.adapter and vlm.fingerprint != first:
            raise ValueError(f"expected adapters of {options.before}, got {name} of {vlm.name}")
        yield label, name, vlm


def _label(name: str) -> str:
    """A folder by its own name, or its parent's where it is called final; others as given."""
    path = Path(name)
    if not path.is_dir():
        return name
    return path.parent.name if path.name == "final" else path.name


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
