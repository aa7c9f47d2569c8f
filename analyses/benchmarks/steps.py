"""The steps of the GPU benchmark, most wanted first.

Each is a process of its own that appends records to a file, one line of JSON each, as soon as they
are measured: what has been measured stays when the process is stopped.
"""

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from analyses.benchmarks.models import SHAPES, Setting, as_vlm, make_model
from analyses.benchmarks.wheels import ROOT, locked

PACKAGES = ("torch", "transformers", "nnsight", "peft", "accelerate", "xarray", "numpy")
EXACTNESS = "tests/interp/test_device.py"
SLOW = ("patch_effects",)
Write = Callable[[dict], None]


@dataclass(frozen=True)
class Sizes:
    """How large the steps are: `FULL` on a GPU, `TOY` where the steps themselves are tested."""

    shapes: tuple[str, str]
    """Shapes of the first and of the second model."""
    tokens: tuple[int, ...]
    sequences: int
    """Sequences of a batch, at the first length."""
    repeats: int
    new_tokens: int
    """Tokens of a completion in training."""
    dtypes: tuple[str, ...]
    """Dtypes of the certificates; everything that is timed is in the first."""
    tests: str
    """pytest's -k for the exactness tests; empty runs all."""


FULL = Sizes(("3b", "7b"), (1000, 2000, 4000), 16, 5, 512, ("bfloat16", "float32"), "")
TOY = Sizes(("toy", "toy"), (80, 120), 2, 1, 40, ("bfloat16", "float32"), "ledger and two_to_one")


def full_depth(shape: str, sizes: Sizes, device: str, tokens: int) -> Setting:
    """A model of a shape with all of its layers."""
    return Setting(
        shape=shape,
        layers=SHAPES[shape][5],
        device=device,
        dtype=sizes.dtypes[0],
        threads=1,
        tokens=tokens,
        sequences=sizes.sequences,
    )


def machine(_sizes: Sizes, device: str, write: Write) -> None:
    """Which machine this is, and how its packages differ from requirements.lock."""
    from importlib.metadata import version

    import torch

    entries = locked()
    pins = {name: entries[name].split("==")[1].split()[0] for name in PACKAGES}
    record = {"python": platform.python_version(), "device": "cpu"}
    if device != "cpu":
        properties = torch.cuda.get_device_properties(device)
        record |= {
            "device": properties.name,
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
        }
    record |= {"versions": {name: version(name) for name in PACKAGES}, "lock": pins}
    record["allow_tf32"] = {
        "products": torch.backends.cuda.matmul.allow_tf32,
        "convolutions": torch.backends.cudnn.allow_tf32,
    }
    write(record)


def exactness(sizes: Sizes, device: str, write: Write) -> None:
    """The exactness tests, run on the device: one record for each, and the failures' messages.

    In an interpreter of their own: pytest's plugins do not import once nnsight is there.
    """
    command = [
        sys.executable,
        "-u",
        "-m",
        "pytest",
        "-v",
        "-p",
        "no:cacheprovider",
        "-o",
        "addopts=",
    ]
    child = subprocess.Popen(
        [*command, "--color=no", "--tb=line", "-k", sizes.tests, EXACTNESS],
        cwd=ROOT,
        env=os.environ | {"TEST_DEVICE": device, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    for line in child.stdout:
        print(line, end="")
        test = re.match(r"(\S+::\S+) (PASSED|FAILED|ERROR|SKIPPED)", line)
        failure = re.match(r"(?:FAILED|ERROR) (\S+) - (.*)", line)
        if test:
            write({"test": test[1], "outcome": test[2].lower()})
        if failure:
            write({"test": failure[1], "message": failure[2]})
    sys.exit(child.wait())


def certificate(sizes: Sizes, device: str, write: Write) -> None:
    """The certificate of a random model of the first shape in every dtype, passed or not."""
    import torch

    from interp.validate import NotCertified, certify

    for dtype in sizes.dtypes:
        setting = replace(full_depth(sizes.shapes[0], sizes, device, sizes.tokens[0]), dtype=dtype)
        vlm = as_vlm(make_model(setting), sizes.tokens[0])
        start = time.perf_counter()
        try:
            model_certificate = certify(vlm, witness=False)
        except NotCertified as error:
            model_certificate = error.certificate
        table = model_certificate.checks.to_dataframe().reset_index()
        write(
            {
                "shape": setting.shape,
                "layers": setting.layers,
                "dtype": dtype,
                "is_passed": model_certificate.is_passed,
                "failures": model_certificate.failures,
                "seconds": time.perf_counter() - start,
                "checks": json.loads(table.to_json(orient="records")),
            }
        )
        del vlm
        if device != "cpu":
            torch.cuda.empty_cache()


def speed(number: int, sizes: Sizes, device: str, write: Write) -> None:
    """Every extraction against a plain forward, at full depth: what is slow comes last."""
    from analyses.benchmarks.timing import BATCHED, EXTRACTIONS, map_tasks, paired, peak_of, tasks

    first = full_depth(sizes.shapes[number], sizes, device, sizes.tokens[0])
    model = make_model(first)
    quick = tuple(name for name in EXTRACTIONS if name not in SLOW)
    plan = [(sizes.tokens[0], quick, tasks), (sizes.tokens[0], BATCHED, tasks)]
    plan += [(n, quick, tasks) for n in sizes.tokens[1:]]
    plan += [(n, ("maps",), map_tasks) for n in sizes.tokens]
    plan += [(n, SLOW, tasks) for n in sizes.tokens]
    for n_tokens, names, make_tasks in plan:
        todo = make_tasks(model, replace(first, tokens=n_tokens))
        plain = next(name for name in todo if name.startswith("forward"))
        if names == BATCHED:
            plain = "forward of a batch"
        peak = peak_of(todo[plain], device)
        write(_sized(first, n_tokens, plain) | {"peak_bytes": peak["peak"]})
        for name in names:
            timing = paired(name, todo, sizes.repeats, device)
            timing["peak_bytes"] = peak_of(todo[name], device)["peak"]
            timing["memory_ratio"] = timing["peak_bytes"] / peak["peak"]
            write(_sized(first, n_tokens, name) | timing)


def _sized(setting: Setting, n_tokens: int, task: str) -> dict:
    return {
        "shape": setting.shape,
        "layers": setting.layers,
        "dtype": setting.dtype,
        "task": task,
        "tokens": n_tokens,
        "sequences": setting.sequences if task.endswith("a batch") else 1,
    }


def profile(sizes: Sizes, device: str, write: Write) -> None:
    """Where the time of one ledger goes beyond the forward's."""
    from analyses.benchmarks.profiling import by_package, kernels, stages
    from analyses.benchmarks.timing import tasks

    setting = full_depth(sizes.shapes[0], sizes, device, sizes.tokens[0])
    model = make_model(setting)
    todo = tasks(model, setting)
    write(_sized(setting, setting.tokens, "ledger") | {"stages": stages(model, setting)})
    for name in ("forward", "ledger"):
        todo[name]()
        record = {"host_seconds": by_package(todo[name], device), **kernels(todo[name], device)}
        write(_sized(setting, setting.tokens, name) | record)


def reward(sizes: Sizes, device: str, write: Write) -> None:
    """Share of a GRPO step that a saliency reward adds, measured with all layers and tokens."""
    from analyses.benchmarks.reward import reward_cost

    setting = full_depth(sizes.shapes[0], sizes, device, sizes.tokens[0])
    n_prompt, repeats = sizes.tokens[0], min(3, sizes.repeats)
    cost = reward_cost(setting, n_prompt, sizes.new_tokens, repeats, is_extended=False, write=write)
    write({"shape": setting.shape, "dtype": setting.dtype} | cost)


STEPS: dict[str, Callable[[Sizes, str, Write], None]] = {
    "machine": machine,
    "exactness": exactness,
    "certificate": certificate,
    "3b": partial(speed, 0),
    "profile": profile,
    "reward": reward,
    "7b": partial(speed, 1),
}


def run_step(name: str, device: str, folder: Path, *, is_toy: bool) -> None:
    """One step in this process: its records to folder/records.jsonl, what it prints to folder/log.

    The process becomes the head of a group, so that it can be stopped with all that it started.
    """
    os.setsid()
    with (folder / "log").open("w") as log, (folder / "records.jsonl").open("w") as records:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)

        def write(record: dict) -> None:
            records.write(json.dumps(record) + "\n")
            records.flush()

        STEPS[name](TOY if is_toy else FULL, device, write)
