"""The installed command, what it is told, and where it writes."""

import json
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

import interp
from analyses import cli, direct_vs_indirect, extract, faithfulness
from analyses.options import DirectVsIndirectReport, Validation
from analyses.run import command, models, samples
from tests.support import commands

EDGE = ("--limit", 2, "--effects", "edge", "--text", "reference", "--no-witness", "--no-images")


def photos(folder: Path, n: int) -> str:
    """Pictures with a question each, ids in the file's order."""
    lines = []
    for k in range(n):
        pixels = np.random.default_rng(k).integers(0, 255, (84, 112, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
        row = {"id": f"p{k}", "image": f"{k}.png", "question": "which digit is red?", "answer": k}
        lines.append(json.dumps(row))
    (folder / "test.jsonl").write_text("\n".join(lines))
    return f"jsonl:{folder}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished report of two photos of four."""
    data = photos(tmp_path_factory.mktemp("photos"), 4)
    out = tmp_path_factory.mktemp("report") / "out"
    commands.run(direct_vs_indirect, *EDGE, "--data", data, "--out", out)
    return data, out


def test_every_command_is_installed_and_has_its_help(monkeypatch, capsys):
    (entry,) = entry_points(group="console_scripts", name="vlm-interp")
    assert entry.load() is cli.main
    monkeypatch.setattr(sys, "argv", ["vlm-interp"])
    assert cli.main() == 2
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in cli.COMMANDS)
    for name in cli.COMMANDS:
        monkeypatch.setattr(sys, "argv", ["vlm-interp", name, "--help"])
        with pytest.raises(SystemExit) as done:
            cli.main()
        assert done.value.code == 0
        assert f"usage: vlm-interp {name}" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["vlm-interp", "dance"])
    assert cli.main() == 2
    assert "expected a command of" in capsys.readouterr().err


def test_it_runs_from_any_folder(tmp_path):
    program = Path(sys.executable).parent / "vlm-interp"
    done = subprocess.run(
        [program, "extract", "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and "direct_vs_indirect" in done.stdout


def test_a_limit_means_the_first_samples_as_in_the_call(finished):
    data, out = finished
    first = [one.id for one in interp.load_samples(data, split="test", limit=2)]
    assert interp.open_run(out / "run")["sample"].values.tolist() == first == ["p0", "p1"]
    shuffled = commands.parsed(DirectVsIndirectReport, "--data", data, "--limit", 4, "--shuffle")
    certified = commands.parsed(Validation, "--data", data)
    assert [one.id for one in samples.load(certified)] == ["p0", "p1", "p2"]
    drawn = [one.id for one in samples.load(shuffled)]
    assert sorted(drawn) == ["p0", "p1", "p2", "p3"] != drawn


def test_a_finished_run_is_neither_replaced_nor_lost(finished):
    data, out = finished
    before = {p: p.read_bytes() for p in (out / "run").rglob("*") if p.is_file()}
    asked = (*EDGE, "--data", data, "--out", out)
    with mock.patch.object(interp, "load_model", side_effect=AssertionError("a model is loaded")):
        done = commands.run(direct_vs_indirect, *asked, code=2)
    assert "expected a folder without a run, got a finished one; pass --resume" in done.stderr
    assert {p: p.read_bytes() for p in (out / "run").rglob("*") if p.is_file()} == before
    done = commands.run(direct_vs_indirect, *asked, "--resume")
    assert "2 samples ok" in done.stdout
    assert {p: p.read_bytes() for p in (out / "run").rglob("*") if p.is_file()} == before
    done = commands.run(direct_vs_indirect, *asked, "--resume", "--max-pixels", 3136, code=2)
    assert "max_pixels=None" in done.stderr
    commands.run(direct_vs_indirect, *asked, "--overwrite", "--max-pixels", 3136)
    run = interp.open_run(out / "run")
    assert 1 < int(run["row"].max() + 1) * int(run["column"].max() + 1) <= 4


def test_a_run_is_found_in_its_report_and_no_report_replaces_another(finished, tmp_path):
    _, out = finished
    for folder in (out, out / "run"):
        assert command.run_in("direct_vs_indirect", folder) == out / "run"
    commands.run(direct_vs_indirect, "--from-run", out, "--out", tmp_path / "again")
    assert (tmp_path / "again/index.html").is_file()
    said = json.loads((tmp_path / "again/manifest.json").read_text())
    assert shlex.split(said["command"])[1:3] == ["--from-run", str(out)]
    assert said["run"] == str((out / "run").resolve())
    for folder, message in (
        (out, "expected a run of faithfulness, got one of direct_vs_indirect"),
        (tmp_path, "expected a run, or a folder with one, got neither"),
    ):
        done = commands.run(faithfulness, "--from-run", folder, "--out", tmp_path / "x", code=2)
        assert message in done.stderr and "Traceback" not in done.stderr
    page = (out / "index.html").read_bytes()
    done = commands.run(faithfulness, "--limit", 1, "--out", out, code=2)
    assert "without another report, got one of direct_vs_indirect" in done.stderr
    assert (out / "index.html").read_bytes() == page


def test_a_report_is_not_drawn_over_that_of_another_run(tmp_path):
    runs = [tmp_path / name / "run" for name in "ab"]
    for run in runs:
        run.mkdir(parents=True)
    out = tmp_path / "out"
    out.mkdir()
    command.refuse_other_run(runs[0], out)  # nothing there
    (out / "manifest.json").write_text(json.dumps({"run": str(runs[0])}))
    command.refuse_other_run(runs[0], out)
    with pytest.raises(ValueError, match="another run's report, got that of .*a/run; choose"):
        command.refuse_other_run(runs[1], out)
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "b", moved)
    (moved / "manifest.json").write_text(json.dumps({"run": str(runs[1])}))
    command.refuse_other_run(moved / "run", moved)  # a folder that was moved is still its own


@pytest.mark.long
def test_rows_of_image_and_question_alone_make_a_whole_report(tmp_path):
    data = photos(tmp_path, 3)
    rows = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    bare = [{name: row[name] for name in ("image", "question")} for row in rows]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, bare)))
    asked = ("--data", data, "--limit", 3, "--max-new-tokens", 40, "--no-witness")
    commands.run(direct_vs_indirect, *asked, "--out", tmp_path / "out")
    run = interp.open_run(tmp_path / "out")  # the run is found in its report
    assert run["reference_answer"].values.tolist() == [""] * run.sizes["sample"]
    assert "shapley" in run and {"mean", "other"} <= set(run["reference"].values.tolist())
    page = (tmp_path / "out/index.html").read_text()
    assert "Is the model any good?" not in page
    assert "wrong, should be" not in page
    assert not (tmp_path / "out/tables/accuracy.csv").exists()
    said = commands.run(extract, "direct_vs_indirect", *asked, "--out", tmp_path / "x", "--dry-run")
    assert "3 samples in 3 shards" in said.stdout
    assert "games   3 samples more, for the verdict, in OUT/run-games" in said.stdout


def test_what_is_wrong_with_the_data_is_said_before_a_model_is_loaded(tmp_path, monkeypatch):
    def unwanted(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(interp.loading, "load_weights", unwanted)
    for script, more in ((direct_vs_indirect, ()), (faithfulness, ()), (extract, ())):
        name = ("faithfulness",) if script is extract else ()
        asked = (*name, "--data", f"jsonl:{tmp_path}", "--out", tmp_path / "out", *more)
        done = commands.run(script, *asked, code=2)
        assert "expected test.jsonl or samples.jsonl in it, got neither" in done.stderr


@pytest.mark.fresh_certificate
def test_a_failed_check_has_an_exit_code_of_its_own(tmp_path, monkeypatch):
    from interp.algebra import readout

    right = readout.value_biases
    monkeypatch.setattr(readout, "value_biases", lambda *a: [2 * bias for bias in right(*a)])
    done = commands.run(direct_vs_indirect, *EDGE, "--out", tmp_path, code=1)
    assert "folded value biases equal" in done.stderr


def test_options_of_the_model_reach_the_model(tmp_path):
    options = commands.parsed(
        DirectVsIndirectReport,
        *("--attn-implementation", "eager", "--prompt", "think", "--dtype", "float16"),
        *("--min-pixels", 3136, "--max-pixels", 6272),
    )
    vlm = models.load(options, "tiny", None)
    assert vlm.prompt == "think" and str(vlm.model.dtype) == "torch.float16"
    assert vlm.model.config._attn_implementation == "eager"
    size = vlm.processor.image_processor.size
    assert (size["shortest_edge"], size["longest_edge"]) == (3136, 6272)


def test_a_run_that_is_redrawn_takes_no_option_of_a_measurement(capsys):
    """Also where it is given as it is by default: an edge run cannot be drawn with all effects."""
    drawing = ("--from-run", "OUT", "--out", "AGAIN", "--overwrite", "--threads", "1")
    assert commands.parsed(DirectVsIndirectReport, *drawing).from_run == Path("OUT")
    with pytest.raises(SystemExit) as ended:
        commands.parsed(DirectVsIndirectReport, *drawing, "--effects", "all", "--limit", "3")
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "expected --from-run without options of a measurement, got --effects, --limit;" in said
