"""Models that runs start from and that are not embedded: made once, when a run first asks."""

import shutil
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

from train.experiment.arms import ANCHORED, COLD3
from train.experiment.runs import SCENES, Run

TINY3_COLD = "train/configs/tiny-cold.yaml"
FOCUS = "train/configs/tiny-focus.yaml"


def base_of(run: Run, folder: Path) -> str:
    """Name or folder of the model that a run trains; two runs that ask at once make one."""
    if run.base not in (COLD3, ANCHORED):
        return run.base
    name = run.base if run.base == COLD3 else f"{ANCHORED}-{run.stage}-{run.seed}"
    made = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{name}.lock"):
        if not made.is_dir():
            if run.base == COLD3:
                _cold3(made)
            else:
                _anchored(run, made)
    return str(made)


def _cold3(made: Path) -> None:
    """`tiny3` made careless as `tiny-cold` was."""
    work = made.with_suffix(".training")
    _python("train.sft", config=TINY3_COLD, model_name_or_path="tiny3", output_dir=work)
    shutil.move(work / "final", made)


def _anchored(run: Run, made: Path) -> None:
    """`tiny-cold` with a <Focus> token, its attention put on the boxes of scenes of this seed."""
    with_token, work = made.with_suffix(".focus"), made.with_suffix(".training")
    _python("train.focus", "tiny-cold", out=with_token)
    _python(
        "train.sft",
        config=FOCUS,
        model_name_or_path=with_token,
        output_dir=work,
        seed=run.seed,
        scene_seed=SCENES[run.stage] + 500 + run.seed,
    )
    part = made.with_suffix(".part")
    _python("train.merge", str(work / "final"), out=part)
    part.rename(made)


def _python(module: str, *given: str, **options) -> None:
    """A command of this package.

    Raises:
        CalledProcessError: it fails.
    """
    named = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    subprocess.run([sys.executable, "-m", module, *given, *named], check=True)
