"""Small stored runs of the three reports, and the tables that they gave.

    python -m tests.support.golden            # renews the tables from the stored runs
    python -m tests.support.golden --measure  # measures the runs again, for another schema

A change of the tables is a change of numbers: it belongs into the commit message.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

import pandas as pd

from tests.support import ROOT

FOLDER = ROOT / "tests/analyses/reports/golden"
COMMON = ("--limit", "3", "--no-witness", "--no-images", "--threads", "1")
ASKED = {
    "direct_vs_indirect": ("--detail", "summary"),
    "faithfulness": (
        "--methods",
        "random",
        "CAM",
        "direct (Eq. 1)",
        "two hops",
        "bottleneck (Saliency-R1)",
        "exact edge",
        "exact slot",
        "occlusion",
    ),
    "before_after": ("--after", "tiny-saliency-r1", "tiny-grpo-control"),
}


def tables(name: str, run: Path) -> dict[str, pd.DataFrame]:
    """The tables that the code of today makes of a run, as CSV keeps them."""
    make = import_module(f"analyses.reports.{name}.page").make_report
    table_by_key = {key: table for key, table in make(run).tables.items() if table is not None}
    with tempfile.TemporaryDirectory() as folder:
        for key, table in table_by_key.items():
            table.to_csv(Path(folder) / key, index=False)
        return {key: pd.read_csv(Path(folder) / key) for key in table_by_key}


def unpacked(name: str, folder: Path) -> Path:
    """A stored run."""
    shutil.unpack_archive(FOLDER / f"{name}.zip", folder / name)
    return folder / name


def main() -> None:
    """Renews."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--measure", action="store_true")
    options = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    for name, arguments in ASKED.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            if options.measure:
                command = [sys.executable, ROOT / "analyses/extract.py", name, *COMMON, *arguments]
                subprocess.run([*command, "--out", folder], check=True)
                shutil.make_archive(str(FOLDER / name), "zip", folder / "run")
            for key, table in tables(name, unpacked(name, folder / "unpacked")).items():
                (FOLDER / name).mkdir(exist_ok=True)
                table.to_csv(FOLDER / name / f"{key}.csv", index=False, float_format="%.7g")


if __name__ == "__main__":
    main()
