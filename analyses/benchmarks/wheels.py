"""Wheels for a GPU machine that reaches no package index.

    python -m analyses.benchmarks.wheels              # into .wheels, for Python 3.12

Packs what the GPU benchmark imports, in the versions of requirements.lock, and prints the line that
installs it there and runs the benchmark. The machine's own Python brings torch with CUDA and what
`PRESENT` names; its versions may differ from the lock, and the benchmark's JSON says how.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from analyses.benchmarks.options import Wheels
from analyses.run.arguments import parse

ROOT = Path(__file__).parents[2]
WANTED = (
    "accelerate",
    "annotated-types",
    "beartype",
    "certifi",
    "cloudpickle",
    "einops",
    "greenlet",
    "httpcore",
    "httpx",
    "hypothesis",
    "nnsight",
    "pandas",
    "peft",
    "pydantic",
    "pydantic-core",
    "python-dateutil",
    "sortedcontainers",
    "transformers",
    "typing-inspection",
    "tzdata",
    "websocket-client",
    "xarray",
    "zstandard",
)
PRESENT = (
    "huggingface-hub",
    "jaxtyping",
    "numpy",
    "packaging",
    "pillow",
    "psutil",
    "pytest",
    "pyyaml",
    "regex",
    "safetensors",
    "scikit-learn",
    "scipy",
    "tokenizers",
    "torch",
    "torchvision",
    "tqdm",
    "typer",
)
"""Packages that the machine must already have, with their dependencies."""
MIB = 2**20
GLIBC = range(17, 40)  # 2.17 … 2.39: pip takes only the ones that are named


def locked() -> dict[str, str]:
    """Entries of requirements.lock, with version and hashes, by name."""
    entries = re.split(r"\n(?=\w)", (ROOT / "requirements.lock").read_text())
    return {entry.split("==")[0]: entry for entry in entries}


def download(python: str, folder: Path) -> None:
    """Fetches the wheels, held against the lock's hashes, and leaves no others in the folder."""
    entries = locked()
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in GLIBC]
    platforms += ["manylinux2014_x86_64", "manylinux1_x86_64"]
    for old in folder.glob("*.whl"):
        old.unlink()
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
        requirements.write("\n".join(entries[name] for name in WANTED))
        requirements.flush()
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
                *("--only-binary=:all:", "--implementation", "cp", "--python-version", python),
                *(word for platform in platforms for word in ("--platform", platform)),
                *("--require-hashes", "--requirement", requirements.name, "--dest", str(folder)),
            ],
            check=True,
        )


def install_line(folder: Path) -> str:
    """The shell line that installs the wheels on the machine and starts the benchmark there."""
    return (
        f"python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target .site "
        f"{folder}/*.whl && PYTHONPATH=.site python3 -m analyses.benchmarks.gpu --minutes 8"
    )


def main() -> int:
    """Packs, weighs and prints the line."""
    options = parse(Wheels, __doc__)
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        download(options.python, options.out)
    except subprocess.CalledProcessError as error:
        print(
            f"error: expected every wheel for Python {options.python}, pip ended with "
            f"{error.returncode}; its own lines above name the one",
            file=sys.stderr,
        )
        return 2
    sizes = {path.name: path.stat().st_size for path in options.out.glob("*.whl")}
    total = sum(sizes.values()) / MIB
    if total > options.limit:
        largest = ", ".join(sorted(sizes, key=sizes.get)[:-4:-1])
        print(
            f"error: expected wheels of at most {options.limit} MiB, got {total:.0f}; "
            f"the largest are {largest}",
            file=sys.stderr,
        )
        return 1
    print(f"{options.out}: {len(sizes)} wheels, {total:.1f} MiB; on the machine:")
    print(install_line(options.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
