"""The models of a comparison, one after the other, with what their adapters say of themselves."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

import interp
from analyses.options import BeforeAfter
from analyses.run.processes import this_device
from interp.loading import resolve
from interp.model.adapters import base_of
from interp.model.vlm import VLM

CURVES = "curves.csv"


def models(names: dict[str, str], options: BeforeAfter) -> Iterator[tuple[str, str, VLM]]:
    """Label, name and model, one after the other; as `measure.measure_run` raises."""
    # The first model is asked, and sees images, as its adapters were trained.
    trained = _same_training([said for said in map(_said, options.after) if said])
    vocabulary = first = None
    given = {name: getattr(options, name) for name in trained}
    trained |= {name: value for name, value in given.items() if value is not None}
    if options.revision is not None:
        raise ValueError("expected no --revision for models of several names, got one")
    for label, name in names.items():
        vlm = interp.load_model(
            name,
            device=this_device(options.device),
            dtype=options.dtype,
            attn_implementation=options.attn_implementation,
            **trained,
        )
        tokens = vlm.processor.tokenizer.get_vocab(), vlm.prompt
        vocabulary, first = vocabulary or tokens, first or vlm.fingerprint
        if tokens != vocabulary:
            raise ValueError(
                f"expected the tokens and prompt of {options.before}, got others in {name}"
            )
        if vlm.adapter and vlm.fingerprint != first:
            raise ValueError(f"expected adapters of {options.before}, got {name} of {vlm.name}")
        yield label, name, vlm


def label_of(name: str) -> str:
    """A folder by its own name, or its parent's where it is called final; others as given."""
    path = Path(name)
    if not path.is_dir():
        return name
    return path.parent.name if path.name == "final" else path.name


def _said(name: str) -> dict:
    """The record of an adapter's training; empty for other models."""
    return base_of(resolve(name)[0]) or {}


def _same_training(records: list[dict]) -> dict:
    """Prompt and bounds of the image's size that all adapters were trained with.

    Raises:
        ValueError: they differ.
    """
    settings = {}
    for name in ("prompt", "min_pixels", "max_pixels"):
        values = {one.get(name) for one in records}
        if len(values) > 1:
            raise ValueError(f"expected adapters of one {name}, got {sorted(map(str, values))}")
        settings[name] = values.pop() if values else None
    return settings


OTHERS = ("placebo", "counterfactual", "reward_function", "ease_weight", "gradient_weight")
"""Options of a training that neither a map nor accuracy and format alone describe."""


def reward_of(name: str) -> dict:
    """Which map a model was paid for: "none" for accuracy and format alone, "" for anything else.

    And which run it was, so that a control of the same seed and scenes can be told.
    """
    record = _said(name)
    paid = record["map"] if record.get("saliency_weight", 1) > 0 and "map" in record else "none"
    run = [record.get(key) for key in ("seed", "sample_seed", "data", "split")]
    is_other = any(record.get(key) for key in OTHERS)
    return {"map": paid if "map" in record and not is_other else "", "training": run}


def curve_of(name: str) -> dict | None:
    """The training's log beside an adapter, by column; None for a model without one."""
    folder = Path(resolve(name)[0])
    if not (folder / CURVES).is_file():
        return None
    return pd.read_csv(folder / CURVES).to_dict("list")
