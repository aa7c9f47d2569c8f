"""Where the time of an extraction goes: by stage, by package on the host, and in kernels."""

import cProfile
import pstats
import sys
import sysconfig
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median

from analyses.benchmarks.models import Setting, make_batch
from analyses.benchmarks.timing import seconds
from analyses.benchmarks.wheels import ROOT

ROUNDS = 5


def stages(model, setting: Setting) -> dict[str, float]:
    """Median seconds of a ledger's stages, the device idle before and after each."""
    import torch

    from interp.capture.prefill import prefill
    from interp.capture.replay import replay
    from interp.extract.ledger import account, labelled
    from interp.extract.prefilled import read_in
    from interp.extract.question import ask
    from interp.model.state import undisturbed

    batch = make_batch(model, setting.tokens)
    rows = list(range(setting.tokens - setting.targets - 1, setting.tokens - 1))
    state = {}
    how = ("tokens", False)
    # In the order of `interp.extract.ledger`: each stage reads what the one before it left.
    todo = {
        "question": lambda: state.update(query=ask(model, batch, positions=rows)),
        "prefill": lambda: state.update(
            context=prefill(model, state["query"].batch, state["query"].rows)
        ),
        "gauge": lambda: state.update(
            asked=read_in(state["query"], state["context"], "centered", None)
        ),
        "replay": lambda: state.update(played=replay(model, state["context"], state["query"].rows)),
        "parts": lambda: state.update(
            parts=account(
                state["asked"], torch.arange(len(rows), device=model.device), state["played"], *how
            )
        ),
        "dataset": lambda: labelled(state["asked"], [state["parts"]], *how),
        "plain forward": lambda: model(**batch, use_cache=True, logits_to_keep=1),
    }
    with torch.no_grad(), undisturbed(model):
        rounds = [
            {name: seconds(task, setting.device) for name, task in todo.items()}
            for _ in range(ROUNDS + 1)
        ]
    return {name: median(one[name] for one in rounds[1:]) for name in todo}


def by_package(task: Callable, device: str) -> dict[str, float]:
    """Seconds that the host spends in functions of each package, the profiler's own cost included.

    What a package has built-in functions do counts as "built-in": launching kernels, and waiting
    for the device.
    """
    profiler = cProfile.Profile()
    profiler.enable()
    seconds(task, device)
    profiler.disable()
    seconds_by_package: dict[str, float] = defaultdict(float)
    for (file, _, _), (_, _, own, _, _) in pstats.Stats(profiler).stats.items():
        seconds_by_package[_package(file)] += own
    return dict(sorted(seconds_by_package.items(), key=lambda pair: -pair[1]))


def _package(file: str) -> str:
    """The package that a file of Python code belongs to, found as imports find it."""
    if not Path(file).is_absolute():
        return "built-in"
    folders = [folder for folder in (*sys.path, str(ROOT)) if file.startswith(f"{folder}/")]
    folder = max(folders, key=len, default=sysconfig.get_path("stdlib"))
    if folder == sysconfig.get_path("stdlib"):
        return "standard library"
    return Path(file).relative_to(folder).parts[0].removesuffix(".py")


def kernels(task: Callable, device: str) -> dict:
    """Kernels on the device and operators on the host, with how often the host waits or copies."""
    import torch
    from torch.profiler import ProfilerActivity

    activities = [ProfilerActivity.CPU]
    if device != "cpu":
        activities.append(ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        seconds(task, device)
    on_device = [e for e in profiler.events() if e.device_type != torch.autograd.DeviceType.CPU]
    averages = profiler.key_averages()
    waits = (
        "aten::item",
        "aten::_local_scalar_dense",
        "aten::nonzero",
        "cudaStreamSynchronize",
        "cudaDeviceSynchronize",
        "cudaMemcpyAsync",
    )
    top = sorted(averages, key=lambda e: -e.self_cpu_time_total)[:15]
    return {
        "n_kernels": len(on_device),
        "kernel_seconds": sum(e.time_range.elapsed_us() for e in on_device) / 1e6,
        "n_operators": sum(e.count for e in averages if e.key.startswith("aten::")),
        "waits": {e.key: e.count for e in averages if e.key in waits},
        "host_operators": [
            {"name": e.key, "count": e.count, "seconds": e.self_cpu_time_total / 1e6} for e in top
        ],
    }
