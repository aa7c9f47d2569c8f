"""The GPU benchmark at toy sizes on the CPU: whole, out of time, with packed wheels alone."""

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from analyses.benchmarks import gpu, steps, wheels
from analyses.benchmarks.options import GPU
from tests.support import ROOT


def with_needs(names) -> set[str]:
    """Distributions and what they need, as installed here."""
    found, todo = set(), [Requirement(name) for name in names]
    while todo:
        one = todo.pop()
        name = canonicalize_name(one.name)
        if name in found:
            continue
        found.add(name)
        needs = map(Requirement, importlib.metadata.requires(name) or [])
        todo += [need for need in needs if need.marker is None or need.marker.evaluate()]
    return found


def bare_site(folder: Path) -> Path:
    """A folder with what the bare machine has and what is packed for it, and nothing else."""
    folder.mkdir()
    for name in {*wheels.WANTED, *with_needs(wheels.PRESENT)}:
        files = importlib.metadata.distribution(name).files
        for top in {file.parts[0] for file in files if not file.parts[0].startswith("..")}:
            if not (folder / top).exists():
                (folder / top).symlink_to(
                    Path(files[0].locate()).parents[len(files[0].parts) - 1] / top
                )
    return folder


@pytest.mark.skipif("SOAK" not in os.environ, reason="every step with toy sizes: make soak")
def test_it_runs_whole_with_nothing_but_the_packed_wheels(tmp_path):
    site = bare_site(tmp_path / "site")
    assert not (site / "zarr").exists() and (site / "torch").exists()
    command = [sys._base_executable, "-m", "analyses.benchmarks.gpu", "--device", "cpu", "--toy"]
    environment = {"PYTHONPATH": str(site), "PYTHONNOUSERSITE": "1"}
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    found = json.loads((tmp_path / "out/gpu-cpu.json").read_text())
    assert done.returncode == 0, json.dumps(found, indent=1)[-3000:]
    assert list(found["steps"]) == list(steps.STEPS)
    assert {step["status"] for step in found["steps"].values()} == {"done"}
    records = {name: step["records"] for name, step in found["steps"].items()}
    assert found["machine"]["versions"]["torch"].split("+")[0] == found["machine"]["lock"]["torch"]
    assert [one["outcome"] for one in records["exactness"]] == ["passed"] * 2
    assert [one["dtype"] for one in records["certificate"]] == ["bfloat16", "float32"]
    assert all(one["is_passed"] and len(one["checks"]) > 30 for one in records["certificate"])
    timed = {(one["task"], one["tokens"], one["sequences"]) for one in records["3b"]}
    for n_tokens in steps.TOY.tokens:
        for task in ("ledger", "effects", "shapley", "first_order", "patch_effects", "maps"):
            assert (task, n_tokens, 1) in timed
    assert ("ledger of a batch", steps.TOY.tokens[0], steps.TOY.sequences) in timed
    assert all(one["ratio_median"] > 0 for one in records["3b"] if "ratio_median" in one)
    assert all(one["peak_bytes"] > 1e8 for one in records["3b"])
    stages = records["profile"][0]["stages"]
    assert 0 < stages["replay"] < sum(stages.values())
    ledger = records["profile"][2]
    assert ledger["n_operators"] > records["profile"][1]["n_operators"]
    assert ledger["host_seconds"]["nnsight"] > 0
    parts, added = records["reward"]
    assert added["measured_seconds"]["2"].items() >= parts["seconds"].items()
    assert added["step_seconds"] > added["step_parts_seconds"]["decoding"] > 0
    assert {"direct", "direct from generation", "ease"} <= set(added["added"])


@pytest.mark.long
def test_a_step_out_of_time_is_stopped_and_keeps_what_it_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    out = tmp_path / "out"

    times = [0.0]

    def clock() -> float:
        """Stands still until the second step has measured something, and is past the end then."""
        is_second = (out / "gpu-cpu.json").exists()
        if is_second and any(path.stat().st_size for path in tmp_path.rglob("records.jsonl")):
            times.append(1e4)
        return times[-1]

    options = GPU(device="cpu", steps=("3b", "profile"), toy=True, out=out)
    found = gpu.run(options, clock)["steps"]
    assert [step["status"] for step in found.values()] == ["done", "out of time", "not started"]
    assert 1 <= len(found["3b"]["records"]) < 20
    assert found["3b"]["records"][0]["task"] == "forward"
    written = json.loads((out / "gpu-cpu.json").read_text())["steps"]
    assert written["3b"]["records"] == found["3b"]["records"]
    assert not list(out.glob("*.part"))


@pytest.mark.long
def test_other_steps_of_the_same_versions_stay_in_the_file(tmp_path):
    options = GPU(device="cpu", steps=("profile",), toy=True, out=tmp_path)
    earlier = {"status": "out of time", "seconds": 3.0, "records": [{"task": "forward"}]}
    whole = gpu.run(options)
    path = gpu.path_of(whole, tmp_path)
    whole["steps"]["3b"] = earlier
    path.write_text(json.dumps(whole))
    assert gpu.run(options)["steps"]["3b"] == earlier
    kept = json.loads(path.read_text())
    assert list(kept["steps"]) == ["machine", "3b", "profile"]
    kept["machine"]["versions"]["torch"] = "1.0"
    path.write_text(json.dumps(kept))
    assert list(gpu.run(options)["steps"]) == ["machine", "profile"]


@pytest.mark.long
def test_without_the_device_it_says_so(capsys, monkeypatch, tmp_path):
    arguments = ["x", "--device", "cuda:77", "--toy", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    assert gpu.main() == 2
    assert "error: expected a device 'cuda:77', got none: " in capsys.readouterr().err


def test_a_record_that_was_being_written_is_left_out(tmp_path):
    (tmp_path / "records.jsonl").write_text('{"task": "a"}\n{"task": ')
    assert gpu._records(tmp_path) == [{"task": "a"}]
    assert gpu._records(tmp_path / "nothing") == []


def test_the_line_to_run_names_the_wheels():
    line = wheels.install_line(Path(".wheels"))
    assert ".wheels/*.whl" in line
    assert line.endswith("python3 -m analyses.benchmarks.gpu --minutes 8")
    assert set(wheels.WANTED) <= set(wheels.locked())
    assert not set(wheels.WANTED) & set(wheels.PRESENT)
    assert "--hash=sha256:" in wheels.locked()["transformers"]


@pytest.mark.parametrize("name", list(gpu.SHARES))
def test_every_share_is_of_a_step(name):
    assert name in steps.STEPS
