"""Writes small runs in forked processes and kills them; torch is never imported here.

python -m tests.support.writer kills FOLDER 100 SEED    # prints what happened, as JSON
"""

import json
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np
import xarray as xr

from interp import vocabulary as labels
from interp.store import opening as store
from interp.store import writing
from interp.store.joining import stack

N_SHARDS = 4
SETTINGS = {"model": "m", "dtype": "float32", "seed": 0}


def one_sample(n_targets: int, n_sources: int, seed: int) -> xr.Dataset:
    """A dataset as `interp.extract` gives it for one sample, with random numbers that add up."""
    rng = np.random.default_rng(seed)
    effect = rng.normal(size=(n_targets, 2, 5)).astype(np.float32)
    roles = ["system", *["image"] * 6, *["thinking"] * (n_sources - 8), "answer"]
    return xr.Dataset(
        {
            "effect": (("target", "source_set", "path"), effect),
            "total": (("target", "source_set"), effect.sum(axis=2)),
            "is_defined": (("target", "source_set"), np.ones((n_targets, 2), dtype=bool)),
            "direct": (("target", "source"), rng.normal(size=(n_targets, n_sources))),
            "magnitude": ("target", np.full(n_targets, 4.0)),
            "remainder": ("target", np.full(n_targets, 4e-6)),
            "replay_drift": ("target", np.full(n_targets, -2e-6)),
        },
        coords={
            "target": np.arange(n_targets),
            "target_role": ("target", ["thinking"] * (n_targets - 1) + ["answer"]),
            "target_token": ("target", [f"t{i}" for i in range(n_targets)]),
            "source_set": ["image", "question"],
            "path": list(labels.EDGE_PATHS),
            "source": np.arange(n_sources),
            "source_role": ("source", roles[:n_sources]),
            "source_token": ("source", ["ü\x00"] * n_sources),
            "image": ("source", [-1, *[0] * 6, *[-1] * (n_sources - 7)]),
            "row": ("source", [-1, 0, 0, 0, 1, 1, 1, *[-1] * (n_sources - 7)]),
            "column": ("source", [-1, 0, 1, 2, 0, 1, 2, *[-1] * (n_sources - 7)]),
        },
    )


def facts(names: list[str]) -> xr.Dataset:
    return xr.Dataset(
        {"family": ("sample", ["sum"] * len(names)), "is_correct": ("sample", [True] * len(names))},
        coords={"sample": names},
    )


def plan() -> list[list[str]]:
    return [[f"s{2 * k}", f"s{2 * k + 1}"] for k in range(N_SHARDS)]


def shard(number: int) -> xr.Dataset:
    names = plan()[number]
    datasets = [one_sample(3 + number, 10 + k, 10 * number + k) for k in range(len(names))]
    return stack(datasets, facts(names))


def write(path: Path, shards: list[xr.Dataset]) -> None:
    """Does as `analyses.run.shards.write_run`, with shards that are there already."""
    with writing.only_writer(path):
        run = writing.start_run(path, SETTINGS, plan(), resume=True)
        done = run.confirmed()
        for number, names in enumerate(plan()):
            if number not in done:
                ok = {name: {"status": "ok", "reason": ""} for name in names}
                run.commit(number, shards[number], {"statuses": ok})
        run.finish({"controls": []})


def in_a_fork(action) -> int:
    """Runs it in a process of its own; its id."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(action() or 0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(9)
    return child


def contents(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def n_files(path: Path) -> int:
    """While others write and rename."""
    return sum(len(files) for _, _, files in os.walk(path))


def opens(path: Path) -> bool:
    try:
        store.open_run(path).load()
    except ValueError:
        return False
    return True


def kills(folder: Path, count: int, seed: int) -> dict[str, int]:
    """Kills a writer after a random number of files, looks if the run opens, lets another go on."""
    shards = [shard(k) for k in range(N_SHARDS)]
    assert os.waitpid(in_a_fork(lambda: write(folder / "whole", shards)), 0)[1] == 0
    full_contents, rng = contents(folder / "whole"), random.Random(seed)
    counts = {"kills": count, "midway": 0, "opened_incomplete": 0, "differ_after_resuming": 0}
    for k in range(count):
        path = folder / f"run{k}"
        child = in_a_fork(lambda path=path: write(path, shards))
        enough = rng.randrange(1, len(full_contents))
        until = time.monotonic() + 120
        while n_files(path) < enough:
            assert time.monotonic() < until, "the writer does not write"
            time.sleep(rng.random() * 1e-3)
        os.kill(child, signal.SIGKILL)  # still there: nobody has waited for it
        os.waitpid(child, 0)
        is_complete = path.is_dir() and contents(path) == full_contents
        counts["midway"] += not is_complete
        counts["opened_incomplete"] += opens(path) and not is_complete
        assert os.waitpid(in_a_fork(lambda path=path: write(path, shards)), 0)[1] == 0
        counts["differ_after_resuming"] += contents(path) != full_contents
    return counts


def limited(folder: Path, *limits: int) -> list[dict[str, bool]]:
    """A device that takes no file of more than some bytes: an error, and afterwards the rest."""
    shards = [shard(k) for k in range(N_SHARDS)]
    write(folder / "whole", shards)
    return [_limited(folder, f"run{limit}", limit, shards) for limit in limits]


def _limited(folder: Path, name: str, limit: int, shards: list[xr.Dataset]) -> dict[str, bool]:
    def too_much():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            write(folder / name, shards)
        except OSError:
            return 7
        return 0

    refused = os.waitstatus_to_exitcode(os.waitpid(in_a_fork(too_much), 0)[1]) == 7
    opened = opens(folder / name)
    write(folder / name, shards)
    same = contents(folder / name) == contents(folder / "whole")
    return {"refused": refused, "opened": opened, "same_after_resuming": same}


def unprivileged(folder: Path) -> dict[str, int]:
    """A folder that the process may only read: what it says."""
    shards = [shard(0)]
    locked = folder / "locked"
    locked.mkdir(mode=0o555)
    folder.chmod(0o755)

    def try_it():
        if os.geteuid() == 0:
            os.setuid(65534)
        try:
            write(locked / "run", shards)
        except PermissionError:
            return 7
        return 0

    code = os.waitstatus_to_exitcode(os.waitpid(in_a_fork(try_it), 0)[1])
    return {"code": code, "files": len(list(locked.iterdir()))}


if __name__ == "__main__":
    action, folder, *numbers = sys.argv[1:]
    print(json.dumps(globals()[action](Path(folder), *map(int, numbers))))
