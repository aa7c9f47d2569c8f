"""Every command behind a published number runs at toy size, with numbers of the right kind."""

import json

import pytest

from analyses import benchmark
from analyses.benchmarks import growth, scaling
from tests.support import commands

TOY = ("--shape", "toy", "--layers", 2, "--tokens", 60, "--repeats", 1)


def written(folder, name: str) -> dict:
    return json.loads((folder / name).read_text())


@pytest.mark.long
def test_extractions_against_a_forward_and_the_release(tmp_path):
    done = commands.run(benchmark, *TOY, "--sequences", 2, "--out", tmp_path)
    found = written(tmp_path, "toy-2-layers-cpu-float32.json")
    assert (found["layers"], found["repeats"], found["rows"]) == (2, 1, 8)
    at = found["by_tokens"]["60"]
    for name in (
        "ledger",
        "effects",
        "shapley",
        "first_order",
        "patch_effects",
        "ledger of a batch",
    ):
        low, high = at[name]["ratio_range"]
        assert 0 < low <= at[name]["ratio_median"] <= high, name
        assert f"60 tokens, {name}: " in done.stdout
    assert at["ledger"]["memory_ratio"] > 0.9
    assert at["forward_peak_bytes"] > 1e8
    release = found["release_arithmetic"]
    assert release["largest_relative_difference"] < 1e-4 < release["release_seconds"]
    assert release["speedup"] == pytest.approx(
        release["release_seconds"] / release["folded_seconds"]
    )


@pytest.mark.long
def test_growth_is_measured_and_drawn(tmp_path, monkeypatch, in_every_format):
    monkeypatch.setitem(growth.SWEEPS, "targets", (1, 4))
    with in_every_format():
        commands.run(benchmark, *TOY, "--growth", "targets", "--out", tmp_path)
    rows = written(tmp_path, "toy-2-layers-cpu-float32-growth.json")["growth"]
    assert [(row["size"], row["extraction"]) for row in rows] == [
        (1, "ledger"),
        (1, "effects"),
        (4, "ledger"),
        (4, "effects"),
    ]
    assert all(row["ratio"] > 0 and row["estimated_bytes"] > 0 for row in rows)
    for ending in ("csv", "png", "svg", "pdf"):
        assert (tmp_path / f"toy-2-layers-cpu-float32-growth.{ending}").stat().st_size > 100


@pytest.mark.long
def test_the_rewards_share_of_a_step(tmp_path):
    commands.run(benchmark, *TOY, "--reward", "--out", tmp_path)
    found = written(tmp_path, "toy-reward-cpu-float32.json")["reward"]
    parts = found["step_parts_seconds"]
    step = sum(parts[name] for name in ("prefill", "decoding", "reference", "training"))
    assert found["step_seconds"] == pytest.approx(step)
    for rule in ("direct", "effect"):
        for source in ("", " from generation", " from prompts"):
            assert found["added"][rule + source] == pytest.approx(parts[rule + source] / step)
    for loss in ("ease", "map_gradient", "map_gradient_2"):
        own = parts[f"training with {loss}"] - parts["training"]
        assert found["added"][loss] == pytest.approx(own / step)


@pytest.mark.long
def test_growth_with_samples(tmp_path):
    asked = ("--samples", 3, "--out", tmp_path / "run", "--json", tmp_path / "scaling.json")
    commands.run(scaling, *asked)
    found = written(tmp_path, "scaling.json")
    (record,) = found["sizes"]
    assert (record["samples"], record["shards"]) == (3, 1)
    assert record["bytes"] > 1e4 and record["open_bytes_s"] > 0
    assert found["largest_resident_bytes_of_the_writer"] > 1e8
