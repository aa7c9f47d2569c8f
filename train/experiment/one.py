"""One run of the experiment: trained, measured, and written down; nothing where it is done.

    python -m train.experiment.one map-gradient_ordinary_0

What it says goes to RUNS/NAME/log.txt when `make experiment` starts it.
"""

import argparse
import json
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch

import interp
from interp.model.identity import fingerprint
from interp.model.vlm import VLM
from train.experiment import measure
from train.experiment.arms import ARMS, BEFORE, ORDINARY, SHORTCUT
from train.experiment.bases import base_of
from train.experiment.runs import HELD_OUT, N_HELD_OUT, Run, calibration, plan

RESULTS = Path("reports/experiment")
RUNS = Path("runs/experiment")
LAST = 20
"""Steps at the end of a training whose log is averaged."""
LIBRARIES = ("torch", "transformers", "trl", "peft")


def done(run: Run, results: Path = RESULTS) -> Path:
    """Where a run's measures are, or will be."""
    return results / run.stage / f"{run.name}.json"


def do(run: Run, results: Path = RESULTS, runs: Path = RUNS, **options) -> dict:
    """Trains and measures a run; what it was trained on and everything that was measured.

    Args:
        run: one of the plan.
        results, runs: folders for measures and trainings.
        options: of the training, instead of the plan's; for tests.

    Raises:
        CalledProcessError: the training fails.
    """
    path = done(run, results)
    if path.is_file():
        return json.loads(path.read_text())
    base, out = base_of(run, runs / "bases"), runs / run.name
    start = time.monotonic()
    if run.arm != BEFORE:
        command = run.command(base, out)
        command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
        subprocess.run([sys.executable, "-m", "train.grpo", *command], check=True)
    trained = time.monotonic()
    vlm = interp.load_model(base if run.arm == BEFORE else str(out / "final"), device="cpu")
    found = {name: measure.as_columns(table) for name, table in _tables(vlm, run).items()}
    result = (
        _facts(run, vlm)
        | _log(out / "final" / "curves.csv")
        | {
            "minutes": {
                "training": round((trained - start) / 60, 2),
                "measuring": round((time.monotonic() - trained) / 60, 2),
            },
            "measures": found,
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result) + "\n")
    part.rename(path)
    return result


def _tables(vlm: VLM, run: Run) -> dict[str, pd.DataFrame]:
    """By scenes: of ordinary ones everything, of those with a frame the answers and their use."""
    n, seed = N_HELD_OUT[run.stage], HELD_OUT[run.stage]

    def scenes(split: str):
        return interp.load_samples("digits", split=split, limit=n, seed=seed)

    if run.scenes == ORDINARY:
        return {ORDINARY: measure.ordinary(vlm, scenes("test"))}
    return {
        "broken": measure.uses(vlm, scenes("broken")),
        SHORTCUT: measure.answers(vlm, scenes(SHORTCUT)),
        ORDINARY: measure.answers(vlm, scenes("test")),
    }


def _facts(run: Run, vlm: VLM) -> dict:
    facts = {name: getattr(run, name) for name in ("arm", "label", "scenes", "seed", "stage")}
    return facts | {
        "title": ARMS[run.arm].title,
        "placebo": ARMS[run.arm].placebo,
        "place": list(ARMS).index(run.arm),
        "base": run.base,
        "options": ARMS[run.arm].options | run.options,
        "model_hash": vlm.fingerprint,
        "adapter_hash": fingerprint(vlm.model, adapter=True),
        "libraries": {name: version(name) for name in LIBRARIES},
    }


def _log(path: Path) -> dict:
    """Steps of a training, and means of its log over the last of them; none without one."""
    if not path.is_file():
        return {"steps": 0, "end of training": {}}
    curves = pd.read_csv(path)
    means = curves.tail(LAST).mean(numeric_only=True)
    return {"steps": len(curves), "end of training": means.round(5).to_dict()}


def main() -> None:
    """Does the run of a name."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", help="as `python -m train.experiment --list` names it")
    options = parser.parse_args()
    by_name = {run.name: run for run in [*calibration(), *plan()]}
    if options.name not in by_name:
        parser.error(f"expected a run of the plan, got {options.name!r}; --list names them")
    torch.set_num_threads(1)
    result = do(by_name[options.name])
    print(options.name, result["minutes"])


if __name__ == "__main__":
    main()
