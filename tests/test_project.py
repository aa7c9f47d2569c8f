"""The project's own files agree with each other."""

import json
import re
import subprocess
import tomllib
from itertools import chain

import yaml

from analyses import faults
from tests.support import ROOT


def tracked():
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in done.stdout.split("\n") if name and (ROOT / name).is_file()]


def locked() -> dict[str, str]:
    return dict(
        re.findall(r"^([\w.-]+)==([\w.+-]+)", (ROOT / "requirements.lock").read_text(), re.M)
    )


def declared() -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    entries = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    return {re.match(r"[\w-]+", entry)[0]: entry for entry in entries}


def test_direct_dependencies_agree_in_three_files():
    pins, ranges = locked(), declared()
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    by_pip = dict(entry.split("==") for entry in conda[-1]["pip"])
    assert set(by_pip) == set(ranges)
    for name, pin in by_pip.items():
        assert pins[name] == pin
        low = re.search(r">=([\d.]+)", ranges[name])[1]
        assert [int(x) for x in pin.split(".")[:2]] >= [int(x) for x in low.split(".")[:2]], name
    assert "python=3.11" in conda


def test_the_lock_has_hashes_the_build_backend_and_no_address():
    text = (ROOT / "requirements.lock").read_text()
    assert "hatchling" in locked()
    assert "uv" in locked()
    assert "://" not in text
    assert all(
        block.count("--hash=sha256:") >= 1
        for block in re.split(r"\n(?=[a-z])", text)
        if "==" in block
    )
    assert (locked()["torch"], locked()["torchvision"]) == ("2.13.0", "0.28.0")


def test_no_file_names_a_registry_or_a_path_of_one_machine():
    registry = re.compile(
        r"(py" + r"pi|python" + r"hosted|registry\.np" + r"mjs|deb\.deb" + r"ian)\.(org|com)"
    )
    home = re.compile(r"(?<![\w.])/(work|root|home)/\w")
    for path in tracked():
        if path.suffix in {".safetensors", ".png", ".lock"}:
            continue
        text = path.read_text(errors="ignore")
        assert not registry.search(text), path
        assert not home.search(text), path


def test_checkpoints_are_safetensors_of_at_most_eight_megabytes():
    files = list((ROOT / "interp/checkpoints").rglob("*"))
    assert not [f for f in files if f.suffix in {".bin", ".pt", ".pkl"}]
    assert all(f.stat().st_size <= 8_000_000 for f in files if f.is_file())


def test_notebooks_and_their_text_pairs_agree():
    """The .py twin is what a reviewer reads; the cells must be the same."""
    import jupytext

    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = [(c.cell_type, c.source) for c in jupytext.read(path).cells]
        pair = [(c.cell_type, c.source) for c in jupytext.read(path.with_suffix(".py")).cells]
        assert cells == pair, path


def test_the_page_of_faults_shows_what_the_soak_tried():
    content = json.loads((ROOT / "reports/faults.json").read_text())
    assert content["failed_tests"] == 0
    assert faults.table(content) in (ROOT / "docs/FAULTS.md").read_text()
