r"""Everything that is to be measured on a GPU, most wanted first, within some minutes.

    python -m analyses.benchmarks.gpu --minutes 8

Exactness tests on the device; certificates of a random model of 3B's shape; speed and memory of
every extraction at 3B's and 7B's full depth; a profile of one ledger; the saliency reward's share
of a GRPO step. Writes one JSON file a device, renewed while it runs, and stops by itself in time: a
step that is out of time is stopped, and what it has measured stays. With `--steps`, the file's
other steps stay too.

`python -m analyses.benchmarks.wheels` packs what a machine without a package index lacks.
"""

import json
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from analyses.benchmarks import steps
from analyses.benchmarks.options import GPU
from analyses.benchmarks.steps import STEPS
from analyses.benchmarks.timing import PRELOADED
from analyses.benchmarks.wheels import ROOT
from analyses.run.arguments import parse

SHARES = {"exactness": 0.2, "certificate": 0.2, "3b": 0.4, "profile": 0.1, "reward": 0.3}
"""Largest fraction of the minutes for a step; steps not named may use all that is left."""
POLL_SECONDS = 0.2


def run(options: GPU, clock: Callable[[], float] = time.monotonic) -> dict:
    """Runs the steps in order until the minutes are over.

    Args:
        options: of the command line.
        clock: seconds of a clock that only goes forward.

    Returns:
        `machine` and, by step, `status` (done, failed, out of time, not started), `seconds`, and
        its `records`.
    """
    end = clock() + 60 * options.minutes
    options.out.mkdir(parents=True, exist_ok=True)
    names = ("machine", *steps_of(options))
    results = {"minutes": options.minutes, "steps": {}}
    for name in names:
        results["steps"][name] = {"status": "not started", "seconds": 0.0, "records": []}
    for name in names:
        step = results["steps"][name]
        if "machine" not in results and name != "machine":
            break
        seconds_left = end - clock()
        if seconds_left <= 0:
            continue
        limit = min(seconds_left, SHARES.get(name, 1.0) * 60 * options.minutes)
        step.update(_run_step(name, options, limit, clock))
        if name == "machine" and step["status"] == "done":
            results["machine"] = step["records"][0]
            _keep_earlier(results, options.out)
        if "machine" in results:
            _write(results, options.out)
        log = f"; {step['log'][-1]}" if step.get("log") else ""
        print(
            f"{name}: {step['status']}, {len(step['records'])} records, "
            f"{step['seconds']:.0f} s{log}",
            flush=True,
        )
    return results


def steps_of(options: GPU) -> tuple[str, ...]:
    """The steps that are asked for.

    Raises:
        ValueError: an unknown one.
    """
    all_names = tuple(name for name in STEPS if name != "machine")
    names = options.steps or all_names
    if set(names) - set(all_names):
        raise ValueError(
            f"expected steps of {all_names}, got {sorted(set(names) - set(all_names))}"
        )
    return names


def _run_step(name: str, options: GPU, limit: float, clock) -> dict:
    """One step in a process of its own, stopped at its limit; its records, and why it ended."""
    # Imports are done once, in a server that has never touched the device, and forked from there.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as name_of_folder:
        folder = Path(name_of_folder)
        child = processes.Process(
            target=steps.run_step,
            args=(name, options.device, folder),
            kwargs={"is_toy": options.toy},
        )
        start = clock()
        child.start()
        while child.is_alive() and clock() - start < limit:
            child.join(POLL_SECONDS)
        is_late = child.is_alive()
        if is_late:
            _stop(child)
        step = {"status": "done", "seconds": clock() - start, "records": _records(folder)}
        if is_late:
            step["status"] = "out of time"
        elif child.exitcode:
            step["status"] = "failed"
            log = (folder / "log").read_text().replace(f"{ROOT}/", "")
            step["log"] = log.strip().splitlines()[-20:]
    return step


def _stop(child: BaseProcess) -> None:
    """Ends a step and what it has started."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:  # it has not become the head of a group yet
        child.kill()
    child.join()


def _records(folder: Path) -> list[dict]:
    """Records of a step; a line without an end was being written when it was stopped."""
    path = folder / "records.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def path_of(results: dict, folder: Path) -> Path:
    """The JSON file's path, named by device."""
    device = re.sub("[^a-z0-9]+", "-", results["machine"]["device"].lower()).strip("-")
    return folder / f"gpu-{device}.json"


def _keep_earlier(results: dict, folder: Path) -> None:
    """Steps that are not asked for stay as the file has them, from the same versions alone."""
    path = path_of(results, folder)
    earlier = json.loads(path.read_text()) if path.exists() else {}
    if earlier and earlier["machine"]["versions"] == results["machine"]["versions"]:
        steps = {name: earlier["steps"].get(name) for name in STEPS} | results["steps"]
        results["steps"] = {name: step for name, step in steps.items() if step}


def _write(results: dict, folder: Path) -> None:
    """Writes the JSON file."""
    path = path_of(results, folder)
    part_path = path.with_suffix(".part")
    part_path.write_text(json.dumps(results, indent=1) + "\n")
    part_path.replace(path)


def main() -> int:
    """Runs, and says where the results are: 0 for all steps done, 3 for some, 2 for no device."""
    options = parse(GPU, __doc__)
    try:
        results = run(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if "machine" not in results:
        lines = results["steps"]["machine"].get("log", ["it ran out of time"])
        print(
            f"error: expected a device {options.device!r}, got none: {lines[-1]}", file=sys.stderr
        )
        return 2
    statuses = {name: results["steps"][name]["status"] for name in ("machine", *steps_of(options))}
    missing = [name for name, status in statuses.items() if status != "done"]
    ending = f"; not done: {', '.join(missing)}" if missing else ""
    print(f"{path_of(results, options.out)}: {len(statuses) - len(missing)} steps done{ending}")
    return 3 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
