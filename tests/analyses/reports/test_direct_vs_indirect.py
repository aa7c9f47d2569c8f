"""The main command in miniature: every file, redrawing without a model, bad samples, the page."""

import html
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

import interp
from analyses import direct_vs_indirect, extract
from analyses.options import DirectVsIndirectReport
from analyses.reports import writing
from analyses.reports.direct_vs_indirect import figures, findings, rule
from analyses.reports.direct_vs_indirect.sample import contrast_foils
from analyses.run.shards import write_run
from interp import stats
from interp.data.sample import Sample
from interp.extract.question import ask
from interp.store import opening as store
from tests.support import ROOT, commands

RESAMPLES = stats.RESAMPLES
SCRIPT = ROOT / "analyses/direct_vs_indirect.py"


def report(*arguments, code=0):
    return commands.run(direct_vs_indirect, *arguments, code=code)


def in_a_process(*arguments, **environment):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | environment,
    )


@pytest.fixture(scope="module")
def out(tmp_path_factory, in_every_format):
    folder = tmp_path_factory.mktemp("report") / "out"
    asked = ("--limit", 7, "--batch-size", 3, "--shard-size", 4, "--seed", 3)
    with in_every_format(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(stats, "RESAMPLES", RESAMPLES)  # another process redraws it
        done = report(*asked, "--out", folder)
    assert re.search(r"index.html: 7 samples ok, 0 skipped, 0 failed, \d+ s", done.stdout)
    return folder


@pytest.mark.long
def test_a_dry_run_tells_what_the_verdicts_scenes_take_besides(out):
    asked = ("direct_vs_indirect", "--limit", 7, "--batch-size", 3, "--shard-size", 4)
    said = commands.run(extract, *asked, "--dry-run", "--out", out / "nothing").stdout
    told = re.search(
        r"games   (\d+) samples more, .* about .*\n +(\S+) s a sample, and (\S+) KiB in (\d+)", said
    )
    n, each, size, n_files = (float(one) for one in told.groups())
    files = [path for path in (out / "run-games").rglob("*") if path.is_file()]
    files = [path for path in files if "images" not in path.parts]
    assert n == len(interp.open_run(out / "run-games")["sample"])
    assert abs(n_files / len(files) - 1) < 0.1
    assert 0.5 < size * 2**10 / sum(path.stat().st_size for path in files) < 2
    assert each > 0.02 and not (out / "nothing").exists()


def test_a_run_of_the_verdicts_scenes_alone_is_not_replaced_either(out, tmp_path, monkeypatch):
    """It is refused before a model is loaded, and all of it is left."""
    shutil.copytree(out / "run-games", tmp_path / "run-games")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(interp, "load_model", None)
    done = report("--limit", 7, "--out", tmp_path, code=2)
    assert "run-games" in done.stderr and "--overwrite" in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_every_file_is_there(out):
    names = (
        "paths",
        "shares",
        "by_layer",
        "scatter",
        "examples",
        "exactness",
        "by_family",
        "cells",
        "path_classes",
        "nodes",
    )
    for name in names:
        for suffix in ("pdf", "svg", "png"):
            assert (out / "figures" / f"{name}.{suffix}").stat().st_size > 1000
    captions = (out / "figures/captions.txt").read_text().split("\n\n")
    captioned = dict(one.split(": ", 1) for one in captions)
    assert captioned.pop("all figures").strip().startswith("model tiny; data digits")
    assert set(captioned) == {path.stem for path in (out / "figures").glob("*.png")}
    assert all(len(text) > 20 and not re.search("[<>]|&amp;", text) for text in captioned.values())
    for name in (
        "paths",
        "shares",
        "margins",
        "by_layer",
        "accuracy",
        "exactness",
        "targets",
        "verdict",
        "verdict_cells",
        "verdict_gates",
        "four_paths",
        "cells",
        "path_classes",
        "node_effects",
        "mediated_roles",
        "modes",
        "natural_effects",
        "interactions",
        "direct_writes",
        "map_agreement",
        "masses",
        "controls",
        "origins",
        "families",
    ):
        n_rows = len(pd.read_csv(out / "tables" / f"{name}.csv"))
        latex = out / "tables" / f"{name}.tex"
        assert n_rows > 0 and latex.exists() == (n_rows <= writing.MOST_ROWS)
        if latex.exists():
            assert latex.read_text().startswith("% \\usepackage{booktabs}\n\\begin{tabular}")
            assert "lower" not in latex.read_text().split("midrule")[0]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["counts"] == {"ok": 7, "skipped": 0, "failed": 0}
    assert manifest["provenance"]["gauge"] == "contrast"
    judged = json.loads((out / "verdict.json").read_text())
    assert {j["token_class"] for j in judged["verdict"]} == {"answer", "thinking"}
    assert {j["game"] for j in judged["verdict"]} == {"first", "second"}
    assert all(j["decision"].startswith("too few images") for j in judged["verdict"])
    assert judged["rule_sha256"] == rule.rule_hash()
    assert len(list((out / "run/shards").glob("*.zarr"))) == 2


def test_the_page_stands_alone_and_says_what_it_found(out):
    page = (out / "index.html").read_text()
    assert not re.search(r"(src|href)=[\"']?https?:", page)
    n_figures = len(list((out / "figures").glob("*.png")))
    assert page.count("data:image/png;base64,") == n_figures
    share = pd.read_csv(out / "tables/shares.csv").query("token_class == 'thinking'")
    image = share.query("source_set == 'image'").iloc[0]
    assert (f"carries {100 * image.estimate:.0f} % of it" in page) == bool(image.is_shown)
    assert str(ROOT) not in page
    links = re.findall(r'href="#([^"]+)"', page)
    assert links.count("trained-controls") == 1
    assert len(links) == 1 + page.count('<details class="part">') > 10
    assert all(page.count(f'id="{name}"') == 1 for name in links)
    assert "and against TransformerLens" in page
    certificate = interp.open_run(out / "run").attrs["certificate"]
    assert certificate["is_passed"]
    assert f"{len(certificate['checks'])} oracles were run on this very model" in page
    for check in certificate["checks"]:
        assert html.escape(check["check"]) in page.replace("&#39;", "&#x27;")


@pytest.mark.fresh_certificate
def test_no_report_where_the_extractor_is_wrong(tmp_path, monkeypatch):
    from analyses.reports.direct_vs_indirect import measure
    from interp.algebra import readout

    right = readout.value_biases
    monkeypatch.setattr(readout, "value_biases", lambda *a: [2 * bias for bias in right(*a)])
    asked = ("--limit", 1, "--effects", "edge", "--text", "reference", "--no-witness")
    options = commands.parsed(DirectVsIndirectReport, *asked)
    with pytest.raises(ValueError, match="oracles on this model, got .*folded value biases equal"):
        measure.measure_run(options, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_axes_in_logits_say_the_gauge(out):
    """A figure travels without its caption."""
    results = findings.find(interp.open_run(out / "run"))
    found = figures.draw(results, out / "run")
    n_named = 0
    for name, figure in found.items():
        labels = [one.get_label_text() for ax in figure.axes for one in (ax.xaxis, ax.yaxis)]
        if name != "cells":  # whose rows have a gauge each
            assert not any("[logit]" in label for label in labels), name
        n_named += sum("[logit, contrast]" in label for label in labels)
        plt.close(figure)
    assert n_named >= 8


def test_tables_are_what_the_run_holds(out):
    """The page's numbers, computed again from the stored arrays in plain numpy."""
    run = interp.open_run(out / "run")
    paths = pd.read_csv(out / "tables/paths.csv").set_index(["token_class", "source_set", "path"])
    for token_class in ("answer", "thinking"):
        images = []
        for name in run["sample"].values:
            mine = (run["target_sample"] == name) & (run["target_role"] == token_class)
            one = run.isel(target=mine.values).sel(source_set="image")
            images.append((float(one["total"].mean()), float(one["effect"].sel(path="ffn").mean())))
        total, ffn = np.mean(images, axis=0)
        assert paths.loc[(token_class, "image", "total"), "estimate"] == pytest.approx(
            total, abs=1e-5
        )
        assert paths.loc[(token_class, "image", "ffn"), "estimate"] == pytest.approx(ffn, abs=1e-5)
    exactness = pd.read_csv(out / "tables/exactness.csv").set_index("check")
    assert (exactness["largest"] < exactness["bound"]).all()
    assert exactness["largest"].max() > 0


def test_logits_are_above_the_twins_answer_or_else_above_the_likeliest_other_token(out):
    run, vlm = interp.open_run(out / "run").load(), interp.load_model("tiny")
    assert run.attrs["gauge"] == "contrast"
    samples = {one.id: one for one in interp.load_samples("digits", limit=7, seed=3)}
    is_answer = (run["target_role"] == "answer").values
    is_twins = run["is_twin_foil"].values.astype(bool)
    assert 0 < is_twins[is_answer].sum() < is_answer.sum() and not is_twins[~is_answer].any()
    for k in np.flatnonzero(is_answer):
        sample = samples[str(run["target_sample"].values[k])]
        foil = vlm.processor.tokenizer.decode([int(run["foil_token_id"].values[k])])
        if is_twins[k]:
            assert foil == sample.twin.answer and sample.thinking == sample.twin.thinking
        else:
            assert foil != run["target_token"].values[k]
    page = (out / "index.html").read_text()
    said = f"the twin's token for {is_twins[is_answer].sum()} of {is_answer.sum()} answer tokens"
    assert said in html.unescape(page)


def test_completions_and_facts_are_stored(out):
    run = interp.open_run(out / "run")
    right = run["answer"].values == run["reference_answer"].values
    assert right.tolist() == run["is_correct"].values.tolist()
    for k, name in enumerate(run["sample"].values):
        answer = run.isel(
            target=((run["target_sample"] == name) & (run["target_role"] == "answer")).values
        )
        assert "".join(answer["target_token"].values) == run["answer"].values[k]
        assert store.image_path(out / "run", str(name)).is_file()


@pytest.mark.long
def test_redrawing_needs_no_model_and_gives_the_same(out, tmp_path):
    """With torch and transformers out of reach."""
    blocked = tmp_path / "blocked"
    for name in ("torch", "transformers", "nnsight"):
        (blocked / name).mkdir(parents=True)
        (blocked / name / "__init__.py").write_text("raise ImportError('not on this laptop')")
    asked = ("--from-run", out / "run", "--out", tmp_path / "again")
    done = in_a_process(*asked, PYTHONPATH=str(blocked))
    assert done.returncode == 0, done.stderr[-3000:]
    for table in (out / "tables").iterdir():
        assert (tmp_path / "again/tables" / table.name).read_text() == table.read_text()
    for figure in (out / "figures").glob("*.*g"):  # PNG and SVG
        assert (tmp_path / "again/figures" / figure.name).read_bytes() == figure.read_bytes()


def test_a_damaged_run_is_an_error_in_one_line(out, tmp_path):
    shutil.copytree(out / "run", tmp_path / "run")
    chunk = next(p for p in (tmp_path / "run/shards/00001.zarr").rglob("c/*") if p.is_file())
    chunk.unlink()
    done = report("--from-run", tmp_path / "run", "--out", tmp_path / "x", code=2)
    assert "00001.zarr" in done.stderr
    assert "Traceback" not in done.stderr


def has_nan(page):
    """Whether a number is missing in what a reader sees."""
    return re.search(r"\bnan\b", re.sub(r"base64,[^\"]*", "", page))


@pytest.mark.long
def test_one_image_has_no_intervals_and_the_page_says_so(tmp_path):
    report("--limit", 1, "--no-witness", "--out", tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert not has_nan(page)
    assert "too few images (0)" in page
    assert "[–]" in page


def many_boxes(sample):
    """The sample with ten boxes, one of them its own."""
    small = [[x / 20, 0.9, (x + 1) / 20, 0.95] for x in range(9)]
    return replace(sample, boxes=np.concatenate([sample.boxes[:1], small]))


def written(folder, samples, vlm, *asked):
    """A run of samples, without a certificate."""
    from analyses.reports.direct_vs_indirect import measure

    asked = (*asked, "--no-witness", "--max-new-tokens", 40)
    options = commands.parsed(DirectVsIndirectReport, *asked)
    recipe = measure.Measurement(vlm, samples, options, certificate={})
    recipe.finish = lambda *_: {}  # random weights and wrong images are other tests' business
    write_run(folder, samples, recipe, options)
    return interp.open_run(folder)


def test_bad_samples_are_counted_and_logged_and_nothing_else_is_lost(tmp_path, caplog):
    vlm, good = interp.load_model("tiny"), interp.load_samples("digits", limit=3)
    good[2] = many_boxes(good[2])
    missing = Sample("missing", tmp_path / "none.png", "what?", "a")
    special = Sample("special", good[0].image, "what <|image_pad|>?", "a")
    # In the second shard not one can be measured.
    emptied = [replace(special, id="b"), replace(special, id="c")]
    samples = [good[0], missing, good[1], special, *emptied, good[2]]
    opened = written(tmp_path / "run", samples, vlm, "--effects", "edge", "--shard-size", 3)
    assert opened["sample"].values.tolist() == [s.id for s in good]
    statuses = opened.attrs["statuses"]
    assert [statuses[s.id]["status"] for s in (missing, special)] == ["skipped", "skipped"]
    assert "readable image" in statuses["missing"]["reason"]
    assert "special tokens" in statuses["special"]["reason"]
    assert "skipped missing" in caplog.text
    assert opened["n_boxes"].values.tolist() == [len(s.boxes) for s in good]
    np.testing.assert_array_equal(opened["box"][2], good[2].boxes)
    completion = vlm.answer(good[1].image, good[1].question)
    foils = contrast_foils(vlm, good[1], ask(vlm, good[1], completion=completion))
    gauge = {"gauge": "contrast", "foils": foils}
    alone = interp.extract.effects(vlm, good[1], completion=completion, **gauge)
    mine = opened.isel(target=(opened["target_sample"] == good[1].id).values)
    mine = mine.sel(source_set=alone["source_set"])
    np.testing.assert_allclose(mine["total"], alone["total"], atol=1e-5)
    counts = writing.write_report("direct_vs_indirect", tmp_path / "run", tmp_path / "out")
    assert counts == {"ok": 3, "skipped": 4, "failed": 0}


@pytest.mark.long
def test_other_questions_and_several_images_are_said(tmp_path, caplog):
    """`tiny` knows scenes alone, and a report measures samples of one image."""
    rows = []
    for number, scene in enumerate(interp.load_samples("digits", split="test", limit=3)):
        scene.image.save(tmp_path / f"{number}.png")
        rows.append({"id": f"s{number}", "image": f"{number}.png", "question": scene.question})
    rows[1]["question"] = "What is on the table?"
    rows.append({"id": "two", "image": ["0.png", "1.png"], "question": rows[0]["question"]})
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = ("--data", f"jsonl:{tmp_path}", "--out", tmp_path / "out", "--effects", "edge")
    said = report(*asked, "--max-new-tokens", 24)
    assert "3 samples ok, 1 skipped" in said.stdout
    assert "skipped two: expected one image in a report, got 2" in caplog.text
    assert "1 of 3 are others" in (tmp_path / "out/index.html").read_text()


def test_unfinished_texts_count_as_wrong(tmp_path):
    report(
        "--limit", 3, "--max-new-tokens", 16, "--effects", "edge", "--no-witness", "--out", tmp_path
    )
    accuracy = pd.read_csv(tmp_path / "tables/accuracy.csv").set_index("family")
    assert accuracy.loc["all", "n"] == 3
    statuses = interp.open_run(tmp_path / "run").attrs["statuses"].values()
    assert any(s["status"] == "skipped" and not s["is_correct"] for s in statuses)
    page = (tmp_path / "index.html").read_text()
    assert "ended at the length limit" in page
    head = page[: page.index("What was measured")]
    assert "Only 3 images" not in head  # those that were cut have no numbers
    assert re.search(r"Only \d images: intervals over so few|One image: there is no interval", head)
    assert re.search(r"\d of 3 texts were cut off at the length limit; raise", head)


@pytest.mark.long
def test_a_model_that_does_not_think_and_data_without_boxes_are_reported(tmp_path):
    scenes = interp.load_samples("digits", limit=3)
    bare = [replace(s, thinking=None, boxes=None, twin=None) for s in scenes]
    written(tmp_path / "run", bare, interp.load_model("tiny"), "--text", "reference")
    assert writing.write_report("direct_vs_indirect", tmp_path / "run", tmp_path / "out")["ok"] == 3
    text = (tmp_path / "out/index.html").read_text()
    assert "token of the thinking" not in text
    assert not has_nan(text)
    assert "Is the model any good?" not in text


def test_edge_effects_alone_are_the_quick_form(tmp_path):
    report("--limit", 2, "--effects", "edge", "--no-witness", "--out", tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert "Cutting edges" not in page.split("What was measured")[0]
    assert "The verdict" not in page
    assert not has_nan(page)
    assert "shapley" not in interp.open_run(tmp_path / "run")
    assert not (tmp_path / "tables/verdict.csv").exists()


@pytest.mark.long
def test_two_models_on_the_same_texts(out, tmp_path):
    """The first model beside itself changes nothing; beside a damaged copy it does."""
    from analyses.reports.direct_vs_indirect import comparison
    from interp.loading import CHECKPOINTS

    shutil.copytree(CHECKPOINTS / "tiny", tmp_path / "other")
    weights = load_file(tmp_path / "other/model.safetensors")
    name = next(n for n in weights if n.endswith("layers.3.mlp.down_proj.weight"))
    weights[name] *= 0.5
    save_file(weights, tmp_path / "other/model.safetensors", metadata={"format": "pt"})
    report("--limit", 2, "--no-witness", "--out", tmp_path / "out", "--compare", tmp_path / "other")
    first = interp.open_run(tmp_path / "out/run")
    second = interp.open_run(comparison.compared_path(tmp_path / "out/run"))
    assert first["text"].values.tolist() == second["text"].values.tolist()
    assert first.attrs["model_hash"] != second.attrs["model_hash"]
    # Both are measured against the first one's foils, though the other's runners-up differ.
    np.testing.assert_array_equal(first["foil_token_id"], second["foil_token_id"])
    other = first.assign(foil_token_id=first["foil_token_id"] + 1)
    with pytest.raises(ValueError, match="the same foils in both runs"):
        comparison.compare(first, other)
    frame = pd.read_csv(tmp_path / "out/tables/comparison.csv").set_index("quantity")
    mine = frame[frame.token_class == "answer"]
    total = mine.loc["edge effect of the image [logit]"]
    means = []
    for run in (first, second):
        totals = run["total"].sel(source_set="image").where(run["target_role"] == "answer")
        means.append(float(totals.groupby("target_sample").mean().mean()))
    assert total.difference_estimate == pytest.approx(means[1] - means[0], abs=1e-5)
    assert abs(total.difference_estimate) > 1e-3
    assert "Two models on the same texts" in (tmp_path / "out/index.html").read_text()
    same = comparison.compare(first, first)
    assert (same.difference_estimate == 0).all()
    other_prompt = second.assign_attrs(prompt="think")
    with pytest.raises(ValueError, match="same prompts"):
        comparison.compare(first, other_prompt)
    assert second.attrs["prompt"] == first.attrs["prompt"] == "plain"
    with pytest.raises(ValueError, match="common samples"):
        comparison.compare(first, second.assign_coords(sample=[f"x{k}" for k in range(2)]))


@pytest.mark.long
def test_sentences_and_texts_without_thinking_fit_their_figures(tmp_path):
    """Long answers wrap, and where there is no thinking the map says so."""
    vlm = interp.load_model("tiny")
    scenes = interp.load_samples("digits", limit=6)
    answer = "the picture shows a small cat that sleeps on a red sofa beside a window " * 3
    question = "what is it that one can see in this picture, and where in it would that be?"
    changed = {"thinking": None, "answer": answer, "question": question, "family": ""}
    said = [replace(s, **changed) for s in scenes]
    run = written(tmp_path / "run", said, vlm, "--text", "reference", "--effects", "edge")
    results = findings.find(run)
    figure = figures.examples(results, tmp_path / "run")
    rows = (len(figure.axes) - 2) // 3
    assert rows == figures.N_EXAMPLES  # without kinds of question, the first samples
    assert [t.get_text() for t in figure.axes[2].texts] == ["no thinking tokens"]
    label = figure.axes[0].get_ylabel()
    assert max(map(len, label.splitlines())) <= 26 and "[...]" in label
    figure.canvas.draw()
    box = figure.axes[0].get_position()
    assert box.width > 0.1 and box.height > 0.02
    for drawn in (figures.by_layer(results), figures.shares(results)):
        drawn.canvas.draw()
        edges = drawn.bbox
        for legend in (*drawn.legends, *(one.get_legend() for one in drawn.axes)):
            if legend is not None:
                frame = legend.get_window_extent()
                assert frame.x0 >= edges.x0 and frame.x1 <= edges.x1
        assert "thinking" not in str([t.get_text() for ax in drawn.axes for t in ax.texts])


@pytest.mark.long
def test_reference_text_is_explained_where_asked(tmp_path):
    asked = (
        "--limit",
        2,
        "--text",
        "reference",
        "--effects",
        "edge",
        "--no-images",
        "--no-witness",
    )
    report(*asked, "--out", tmp_path)
    run = interp.open_run(tmp_path / "run")
    assert run["text"].values.tolist() == [s.text for s in interp.load_samples("digits", limit=2)]
    assert not (tmp_path / "run/images").exists()
    assert not (tmp_path / "figures/examples.png").exists()


def test_help_answers_at_once_and_errors_are_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(SCRIPT), "--help"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "--from-run" in done.stdout
    for heavy in ("torch", "xarray", "matplotlib", "numpy"):
        assert f" {heavy}\n" not in done.stderr
    asked = [
        "-X",
        "importtime",
        str(SCRIPT),
        "--data",
        f"jsonl:{tmp_path}",
        "--out",
        tmp_path / "o",
    ]
    done = subprocess.run([sys.executable, *asked], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert f"error: {tmp_path}: expected test.jsonl" in done.stderr
    for heavy in ("torch", "xarray", "matplotlib"):
        assert f" {heavy}\n" not in done.stderr
    done = report("--model", "nowhere/nothing", "--out", tmp_path, code=2)
    assert done.stderr.strip().splitlines()[-1].startswith("error: expected a hub id")
