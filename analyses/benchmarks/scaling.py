"""How time, memory and disk grow with the number of samples: one long extraction, and its opening.

    python -m analyses.benchmarks.scaling --samples 20000 --out runs/scaling --resume

Extracts edge effects of the embedded model on N scenes in one process of one thread and watches it;
then opens the first 100, 1,000, … of them. Writes reports/benchmarks/scaling-DETAIL.json: seconds
since the first shard, resident memory of the writer, bytes and files, and for opening each size
seconds and memory with all bytes compared, and with names, sizes and metadata alone.
"""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

from analyses.benchmarks.options import Scaling
from analyses.run.arguments import parse

ROOT = Path(__file__).parent.parent.parent
STEPS = (100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000)
OPEN = """
import resource, sys, time
import interp
rss = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
interp.open_run  # whatever it imports
start, before = time.perf_counter(), rss()
run = interp.open_run(sys.argv[1], check=sys.argv[2], partial=True)
opened = time.perf_counter() - start
mean = float(run["total"].sel(source_set="image").mean())
print(opened, time.perf_counter() - start, rss() - before)
"""


def _watched(command: list[str]) -> int:
    """Runs it; its largest resident memory in bytes."""
    process, largest = subprocess.Popen(command), [0]

    def watch() -> None:
        while process.poll() is None:
            try:
                resident = psutil.Process(process.pid).memory_info().rss
            except psutil.Error:  # it has just ended
                break
            largest[0] = max(largest[0], resident)
            time.sleep(0.5)

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    watcher.join()
    if code:
        raise SystemExit(code)
    return largest[0]


def _cut(run: Path, n_shards: int) -> Path:
    """The first shards of a run as a run of its own, with links to them."""
    manifest = json.loads((run / "manifest.json").read_text())
    cut = run.with_name(f"first-{n_shards}")
    cut.mkdir(exist_ok=True)
    shards = cut / "shards"
    if not shards.exists():
        shards.symlink_to((run / "shards").resolve())
    content = manifest | {"shards": manifest["shards"][:n_shards], "attributes": {}}
    (cut / "manifest.json").write_text(json.dumps(content))
    return cut


def _opening(run: Path, n_shards: int) -> dict[str, float]:
    cut, costs = _cut(run, n_shards), {}
    for check in ("bytes", "structure"):
        process = subprocess.run(
            [sys.executable, "-c", OPEN, str(cut), check],
            capture_output=True,
            text=True,
            check=True,
        )
        opened, read, memory = map(float, process.stdout.split())
        costs |= {
            f"open_{check}_s": opened,
            f"open_and_mean_{check}_s": read,
            f"open_{check}_mib": memory / 2**10,
        }
    return costs


def measure(run: Path) -> list[dict]:
    """A record per number of samples that is there."""
    plan = json.loads((run / "manifest.json").read_text())["shards"]
    records, n_samples, n_bytes, n_files, start = [], 0, 0, 0, None
    steps = list(STEPS)
    for number, samples in enumerate(plan):
        store = run / "shards" / f"{number:05d}.zarr"
        confirmation = store.with_suffix(".json")
        if not confirmation.is_file():
            break
        files = [confirmation, *(p for p in store.rglob("*") if p.is_file())]
        n_samples, n_files = n_samples + len(samples), n_files + len(files)
        n_bytes += sum(p.stat().st_size for p in files)
        at = confirmation.stat().st_mtime
        start = start or (at, n_samples)
        is_last = number == len(plan) - 1
        if n_samples >= steps[0] or is_last:
            steps = [step for step in steps if step > n_samples]
            record = {
                "samples": n_samples,
                "shards": number + 1,
                "files": n_files,
                "bytes": n_bytes,
                "extraction_s": at - start[0],
                "samples_timed": n_samples - start[1],
            }
            records.append(record | _opening(run, number + 1))
            print(records[-1], flush=True)
    return records


def main() -> int:
    """Extracts, opens, writes what was measured."""
    options = parse(Scaling, __doc__)
    memory = None
    if not options.only_open:
        command = [
            sys.executable,
            str(ROOT / "analyses/extract.py"),
            "direct_vs_indirect",
            "--effects",
            "edge",
            "--detail",
            options.detail,
            "--limit",
            str(options.samples),
            "--threads",
            "1",
            "--no-witness",
            "--no-images",
            "--shard-size",
            "100",
            "--out",
            str(options.out),
            *(["--resume"] if options.resume else []),
        ]
        memory = _watched(command)
    content = {
        "command": f"python -m analyses.benchmarks.scaling --samples {options.samples}",
        "model": "tiny",
        "effects": "edge",
        "detail": options.detail,
        "threads": 1,
        "largest_resident_bytes_of_the_writer": memory,
        "sizes": measure(options.out / "run"),
    }
    path = options.json or ROOT / f"reports/benchmarks/scaling-{options.detail}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
