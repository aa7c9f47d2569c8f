"""Signs of life where there is no terminal, and what a cut run keeps."""

import json

import pytest

import interp
from analyses import extract
from analyses.options import DirectVsIndirect
from analyses.reports.direct_vs_indirect import measure, sample
from analyses.run import progress, shards
from interp.store import opening
from tests.support import commands


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_line_a_minute_says_how_much_is_left(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    clock = Clock()
    with progress.Progress(200, clock=clock) as told:
        for second in range(0, 601, 10):
            clock.now = float(second)
            told.tick()
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 10
    assert lines[0] == "7 of 200 samples, 1 min so far, about 28 min left"
    assert lines[-1] == "61 of 200 samples, 10 min so far, about 23 min left"
    assert progress.span(3 * 3600 + 61) == "3 h 1 min"


@pytest.mark.parametrize(("n", "most"), [(1, 1), (8, 1), (9, 2), (200, 25), (512, 64), (20000, 64)])
def test_a_cut_loses_an_eighth_of_a_short_run_at_most(n, most):
    samples = [object()] * n
    parts = shards.in_shards(samples, commands.parsed(DirectVsIndirect))
    assert max(map(len, parts)) == most and sum(map(len, parts)) == n
    asked = shards.in_shards(samples, commands.parsed(DirectVsIndirect, "--shard-size", 5))
    assert max(map(len, asked)) == min(n, 5)


def test_a_run_that_is_interrupted_keeps_what_it_has(tmp_path, monkeypatch):
    """Ctrl-C in the third sample of four."""
    asked = ("direct_vs_indirect", "--limit", 4, "--effects", "edge", "--text", "reference")
    asked = (*asked, "--no-witness", "--no-images", "--out", tmp_path)
    right, seen = measure.Measurement.measure, []

    def interrupted(self, samples, *arguments):
        seen.extend(samples)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return right(self, samples, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(measure.Measurement, "measure", interrupted)
        done = commands.run(extract, *asked, code=130)
    assert "interrupted; --resume goes on" in done.stderr
    kept = interp.open_run(tmp_path / "run", partial=True)
    assert kept.sizes["sample"] == 2
    before = {
        p: p.read_bytes()
        for p in opening.shard_path(tmp_path / "run", 0).rglob("c*/*")
        if p.is_file()
    }
    commands.run(extract, *asked, "--resume")
    assert interp.open_run(tmp_path / "run").sizes["sample"] == 4
    assert before and all(p.read_bytes() == content for p, content in before.items())
    assert json.loads((tmp_path / "run/manifest.json").read_text())["attributes"] is not None


@pytest.mark.long
def test_samples_that_fail_again_leave_a_finished_run_finished(tmp_path, monkeypatch):
    """Four of five have no memory for them, before and after; one was measured."""
    asked = ("direct_vs_indirect", "--limit", 5, "--effects", "edge", "--text", "reference")
    asked = (*asked, "--no-witness", "--no-images", "--batch-size", 1, "--out", tmp_path)
    right, order = sample.Measurer.measure, []

    def scarce(self, pairs, *arguments):
        order.extend(one.id for one, _ in pairs)
        if len(order) % 5 == 3:
            return right(self, pairs, *arguments)
        return [RuntimeError("no memory")] * len(pairs)

    with monkeypatch.context() as patch:
        patch.setattr(sample.Measurer, "measure", scarce)
        done = commands.run(extract, *asked, code=3)
        assert "1 samples ok, 0 skipped, 4 failed" in done.stdout
        patch.setattr(
            sample.Measurer, "measure", lambda _, pairs, *__: [RuntimeError()] * len(pairs)
        )
        done = commands.run(extract, *asked, "--resume", code=3)
    assert "1 samples ok, 0 skipped, 4 failed" in done.stdout
    assert interp.open_run(tmp_path / "run").sizes["sample"] == 1
    commands.run(extract, *asked, "--resume")
    run = interp.open_run(tmp_path)
    assert run.sizes["sample"] == 5
    assert (run.attrs["prompt"], run.attrs["revision"]) == ("plain", "")
