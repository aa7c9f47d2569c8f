"""The runs of models before and after training as one dataset. Needs no model."""

from itertools import count, takewhile
from pathlib import Path

import pandas as pd
import xarray as xr

import interp

PER_SAMPLE = ("question", "reference_answer", "family", "box")  # the same in every model's run


def open_arms(path: Path) -> xr.Dataset:
    """All models' runs (`path`/0 before training, /1, … after it), joined along arm.

    Raises:
        ValueError: no run, one that cannot be opened, or runs on other samples or data.
    """
    runs = [interp.open_run(one).load() for one in runs_in(path)]
    if not runs:
        raise ValueError(f"{path}: expected runs 0, 1, … of models before and after, got none")
    for run in runs[1:]:
        for key in ("data", "seed", "text_of_all"):
            if run.attrs[key] != runs[0].attrs[key]:
                raise ValueError(f"{path}: expected runs with one {key}, got several")
    labels = [run.attrs["arm"] for run in runs]
    measured = [one.drop_vars([*PER_SAMPLE, "text_token_id"]) for one in runs]
    joined = xr.concat(
        measured,
        pd.Index(labels, name="arm"),
        join="outer",
        combine_attrs="drop",
        data_vars="all",
        coords="minimal",
        compat="override",
    )
    joined = joined.assign({name: runs[0][name] for name in PER_SAMPLE})
    joined.attrs = _attributes(dict(zip(labels, (run.attrs for run in runs), strict=True)))
    return joined


def runs_in(path: Path) -> list[Path]:
    """The folders of a model's run each."""
    return list(takewhile(Path.is_dir, (path / str(k) for k in count())))


def _attributes(by_arm: dict[str, dict]) -> dict:
    first = next(iter(by_arm.values()))
    keys = ("base", "model_hash", "certificate")
    return {
        "statuses": first["statuses"],
        "reasons": {
            label: [reason for said in one["reasons"].values() for reason in said]
            for label, one in by_arm.items()
        },
        "arms": {label: {k: one[k] for k in keys} | one["reward"] for label, one in by_arm.items()},
        "curves": {label: one["curve"] for label, one in by_arm.items()},
        "text": first["text_of_all"],
        **{key: first[key] for key in ("data", "seed", "code")},
    }
