"""All runs of the experiment that are not done yet, some at a time, a thread each.

    python -m train.experiment                       # make experiment: docs/EXPERIMENT.md
    python -m train.experiment --stage calibration   # what its weights were chosen by
    python -m train.experiment --list

Give the same command again after an interruption: a run that is done is not done again, and one
that was begun goes on from its last checkpoint. Measures lie in reports/experiment/.
"""

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from train.experiment.one import RUNS, done
from train.experiment.runs import Run, calibration, plan

STAGES = {"experiment": plan, "calibration": calibration}


def start(run: Run, runs: Path = RUNS) -> tuple[str, int]:
    """A run in a process of its own, on one thread; its name, and the code it ended with."""
    log = runs / "logs" / f"{run.name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "train.experiment.one", run.name]
    with log.open("a") as out:
        code = subprocess.run(
            command, stdout=out, stderr=out, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
        ).returncode
    print(f"{run.name}: {'done' if code == 0 else f'failed, see {log}'}", flush=True)
    return run.name, code


def main() -> None:
    """Does what is left of a stage; ends with code 1 if a run failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stage", choices=list(STAGES), default="experiment")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time")
    parser.add_argument("--list", action="store_true", help="name the runs, and which are done")
    options = parser.parse_args()
    runs = STAGES[options.stage]()
    left = [run for run in runs if not done(run).is_file()]
    if options.list:
        for run in runs:
            print(run.name, "" if run in left else "done")
        return
    print(f"{len(left)} of {len(runs)} runs to do", flush=True)
    with ThreadPoolExecutor(options.workers) as pool:
        failed = [name for name, code in pool.map(start, left) if code]
    if failed:
        sys.exit(f"error: {len(failed)} of {len(left)} runs failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
