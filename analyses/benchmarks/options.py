"""Options of the benchmarks, in the form of `analyses.options`."""

from dataclasses import dataclass
from pathlib import Path

from analyses.run.arguments import option


@dataclass(frozen=True)
class Benchmark:
    """Options of `benchmark.py`."""

    shape: str = option("3b", "whose widths (default: 3b)", choices=("3b", "7b", "toy"))
    layers: int = option(4, "decoder layers (default: 4)")
    tokens: tuple[int, ...] = option((741,), "sequence lengths (default: 741)", nargs="+", type=int)
    sequences: int = option(1, "time extractions of a batch of so many too (default: 1)")
    repeats: int = option(5, "pairs of runs (default: 5)")
    device: str = option("cpu", "default: cpu")
    dtype: str = option("float32", "default: float32", choices=("float32", "bfloat16"))
    threads: int = option(1, "CPU threads (default: 1)")
    all_memory: bool = option(False, "peak memory of every extraction")
    skip_release: bool = option(False, "leave out the release's arithmetic (a minute)")
    growth: tuple[str, ...] | None = option(
        None,
        "only how time and memory grow with tokens, targets, sets or layers, into files of its own "
        "(default: the first three)",
        nargs="*",
        metavar="AXIS",
        choices=("tokens", "targets", "sets", "layers"),
        type=str,
    )
    reward: bool = option(False, "only what a reward adds to a GRPO step, likewise")
    out: Path = option(Path("reports/benchmarks"), "folder of the JSON file (default: %(default)s)")


@dataclass(frozen=True)
class GPU:
    """Options of `analyses.benchmarks.gpu`."""

    minutes: float = option(8.0, "when to stop (default: 8)")
    device: str = option("cuda", "default: cuda")
    steps: tuple[str, ...] | None = option(
        None, "some of the steps by name (default: all)", nargs="+", metavar="STEP", type=str
    )
    toy: bool = option(False, "toy sizes, to try the command itself")
    out: Path = option(Path("reports/benchmarks"), "folder of the JSON file (default: %(default)s)")


@dataclass(frozen=True)
class Wheels:
    """Options of `analyses.benchmarks.wheels`."""

    python: str = option("3.12", "the machine's Python (default: 3.12)")
    out: Path = option(Path(".wheels"), "folder of the wheels (default: %(default)s)")
    limit: int = option(40, "most that may be packed, in MiB (default: 40)", metavar="MIB")


@dataclass(frozen=True)
class Scaling:
    """Options of `scaling.py`."""

    samples: int = option(20000, "how many (default: 20000)")
    detail: str = option("summary", "default: summary", choices=("tokens", "summary"))
    out: Path = option(Path("runs/scaling"), "folder of the run (default: %(default)s)")
    json: Path | None = option(
        None, "file to write (default: reports/benchmarks/scaling-DETAIL.json)", type=Path
    )
    resume: bool = option(False, "go on with it")
    only_open: bool = option(False, "of what is there, measure the opening alone")
