"""The frame of every command: log level, threads, one last line, the exit code."""

import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

LOGGERS = ("interp", "extraction", "controls")


def run(
    report: Callable[[], dict[str, int] | None],
    out: Path,
    *,
    log_level: str = "warning",
    threads: int | None = None,
) -> int:
    """Runs a command's work, prints its last line, and returns the exit code.

    0 for done, 1 where the extractor is not right on the model, 2 for wrong options or input, 3
    where samples failed, 130 for an interruption.

    Args:
        report: the work; returns how many samples were ok, skipped and failed, if any were.
        out: what to point at.
        log_level: of this package's messages.
        threads: of torch on a CPU.
    """
    # Set before torch is imported: its profiler, which measures memory, reports on every start.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    listen(log_level)
    start = time.monotonic()
    try:
        _set_threads(threads)
        counts = report()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if type(error).__name__ == "NotCertified" else 2
    except KeyboardInterrupt:
        print("interrupted; --resume goes on", file=sys.stderr)
        return 130
    if counts is None:
        return 0
    if int(os.environ.get("RANK", "0")) == 0:
        print(
            f"{out}: {counts['ok']} samples ok, {counts['skipped']} skipped, "
            f"{counts['failed']} failed, {time.monotonic() - start:.0f} s"
        )
    return 3 if counts["failed"] else 0


def listen(log_level: str) -> None:
    """Shows this package's messages from a level on, and other packages' warnings."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    for name in LOGGERS:
        logging.getLogger(name).setLevel(log_level.upper())


def make_report(name: str, options) -> int:
    """Measures, unless redrawing, and draws a report; the exit code.

    Args:
        name: of the report.
        options: of its command, with from_run and out.
    """

    def work() -> dict[str, int]:
        from importlib import import_module

        if options.from_run is None:
            refuse_data(options)
        from analyses.reports.writing import write_report

        refuse_several_processes()
        refuse_other_report(name, options.out)
        if options.from_run is not None:
            run_path = run_in(name, options.from_run)
            if not options.overwrite:
                refuse_other_run(run_path, options.out)
            return write_report(name, run_path, options.out)
        path = options.out / "run"
        refuse_run(options, path)
        import_module(f"analyses.reports.{name}.measure").measure_run(options, path)
        return write_report(name, path, options.out)

    page = options.out / "index.html"
    return run(work, page, log_level=options.log_level, threads=options.threads)


def refuse_run(options, path: Path) -> None:
    """Raises ValueError for a run that is there and is neither gone on with nor replaced.

    It is asked before a model is loaded, of all that lies beside the run under its name; where a
    run is of several models, of the first one's.
    """
    from interp.store.writing import refuse_measured

    if not options.resume and not options.overwrite:
        for one in (path, path / "0", *sorted(path.parent.glob(f"{path.name}-*"))):
            refuse_measured(one)


def refuse_data(options) -> None:
    """Raises ValueError for files of samples that are not there, or without one readable row.

    It is asked before torch is imported, which takes longer than to say so.
    """
    from interp.data import FROM_FILES, load_samples

    if options.data.partition(":")[0] in FROM_FILES:
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)  # rows that are left out are told when all are read
        try:
            load_samples(options.data, split=options.split, limit=1)
        finally:
            logging.disable(before)


def run_in(name: str, folder: Path) -> Path:
    """The run that a folder is, or that lies in it as a report's.

    Raises:
        ValueError: neither, or a run of another report.
    """
    # The runs of several models are numbered.
    paths = [folder, folder / "run"]
    manifests = {path: (path / "manifest.json", path / "0/manifest.json") for path in paths}
    for path, candidates in manifests.items():
        for manifest in candidates:
            content = json.loads(manifest.read_text()) if manifest.is_file() else {}
            if "shards" in content:
                report = content["settings"].get("report")
                if report != name:
                    raise ValueError(
                        f"{folder}: expected a run of {name}, got one of {report}; "
                        f"draw it with {report}.py"
                    )
                return path
    raise ValueError(f"{folder}: expected a run, or a folder with one, got neither")


def refuse_other_report(name: str, out: Path) -> None:
    """Raises ValueError where another report lies in the folder that is to be written."""
    manifest = out / "manifest.json"
    there = json.loads(manifest.read_text()).get("report") if manifest.is_file() else None
    if there not in (None, name):
        raise ValueError(
            f"{out}: expected a folder without another report, got one of {there}; "
            "choose another with --out"
        )


def refuse_other_run(run_path: Path, out: Path) -> None:
    """Raises ValueError where the report of another run lies in the folder to be written."""
    manifest = out / "manifest.json"
    there = json.loads(manifest.read_text()).get("run") if manifest.is_file() else None
    is_own = run_path.resolve().is_relative_to(out.resolve())  # wherever the folder was moved to
    if there is not None and not is_own and Path(there).resolve() != run_path.resolve():
        raise ValueError(
            f"{out}: expected a folder without another run's report, got that of {there}; choose "
            "another with --out, or --overwrite"
        )


def refuse_several_processes() -> None:
    """Raises ValueError under a launcher of several processes, which would all draw the report."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count > 1:
        raise ValueError(
            f"expected one process to draw a report, got WORLD_SIZE={count}; launch "
            "analyses/extract.py, then redraw with --from-run"
        )


def _set_threads(n_threads: int | None) -> None:
    if n_threads is not None:
        import torch

        torch.set_num_threads(n_threads)
