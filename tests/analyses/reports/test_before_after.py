"""Before and after training: a run of two models, its tables, its words."""

import html
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

import interp
from analyses import before_after, direct_vs_indirect
from analyses.options import BeforeAfterReport
from analyses.reports.before_after import findings, measure, models, through_words, words
from analyses.reports.before_after.runs import open_arms
from interp.extract.references import Pool
from interp.store import joining as stacking
from tests.support import ROOT, commands


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The command on two scenes: the cold start, the same again, and a trained adapter."""
    out = tmp_path_factory.mktemp("arms")
    again = tmp_path_factory.mktemp("models") / "again"
    again.symlink_to(ROOT / "interp/checkpoints/tiny-cold")
    arms = ("--before", "tiny-cold", "--after", "tiny-saliency-r1", again)
    done = commands.run(
        before_after, "--limit", 2, "--shard-size", 2, *arms, "--no-witness", "--out", out
    )
    assert "2 samples ok, 0 skipped, 0 failed" in done.stdout
    return out


def test_the_report_is_whole_and_redraws_byte_for_byte(report, tmp_path):
    page = (report / "index.html").read_text()
    assert "Did the map move because the effect moved?" in page
    assert "On 2 images, where 100 are needed to say so: " in page
    assert not re.search(r"\bnan\b", re.sub(r"base64,[^\"]*", "", page))
    assert {p.stem for p in (report / "figures").glob("*.png")} == {
        "game",
        "alignment",
        "effects",
        "paths",
        "curves",
        "examples",
    }
    commands.run(before_after, "--from-run", report / "run", "--out", tmp_path)
    for name in ("index.html", "tables/levels.csv", "tables/changes.csv", "figures/effects.png"):
        assert (tmp_path / name).read_bytes() == (report / name).read_bytes(), name


@pytest.mark.long
def test_the_whole_report_tells_of_the_training_too(report, tmp_path, monkeypatch):
    """The main page says what a report beside it found, and without one nothing."""
    monkeypatch.setattr("interp.stats.RESAMPLES", 50)
    out = tmp_path / "out"
    asked = ("--limit", 2, "--effects", "edge", "--no-witness")
    commands.run(direct_vs_indirect, *asked, "--out", out)
    title = "Before and after training on a saliency reward"
    assert title not in (out / "index.html").read_text()
    shutil.copytree(report, out / "before_after")
    commands.run(direct_vs_indirect, "--from-run", out / "run", "--out", out)
    page = (out / "index.html").read_text()
    assert title in page and 'href="before_after/index.html"' in page
    summary = json.loads((report / "summary.json").read_text())
    assert summary["counts"]["ok"] == 2
    for _, sentence in summary["sentences"]:
        assert html.escape(sentence) in page.replace("&#39;", "&#x27;").replace("&#34;", "&quot;")


@pytest.mark.long
def test_the_game_is_that_of_the_public_call_and_words_and_weights_cross(report):
    """On own words; with the base's words, and with its weights, by calls on either model."""
    run = open_arms(report / "run").sel(arm="tiny-saliency-r1")
    sample = interp.load_samples("digits", split="test", limit=2)[1]
    arm, cold = interp.load_model("tiny-saliency-r1"), interp.load_model("tiny-cold")
    texts = {
        name: vlm.answers([sample, sample.twin]) for name, vlm in (("own", arm), ("before", cold))
    }
    totals = {}
    for weights, vlm in (("own", arm), ("before", cold)):
        for whose, (text, twin_text) in texts.items():
            played = interp.extract.words(
                vlm, sample, sample.twin, text=text, partner_text=twin_text
            ).sel(gauge="contrast", norm="live", drawn="greedy")
            totals[weights, whose] = float(played["words_total"])
            if (weights, whose) == ("own", "own"):
                owen = played["words_owen"]
    mine = run.sel(sample=sample.id)
    np.testing.assert_allclose(mine["words_owen"], owen, atol=1e-4)
    for (weights, whose), total in totals.items():
        cell = mine["words_effect"].sel(weights_of=weights, words_of=whose)
        assert float(cell) == pytest.approx(total, abs=1e-4), (weights, whose)
    assert len({round(total, 3) for total in totals.values()}) > 1
    # A whole checkpoint has not the model before inside it: what would need that has no number.
    whole = open_arms(report / "run").sel(arm="again")["words_effect"]
    assert whole.sel(weights_of="own", words_of="own").notnull().all()
    assert whole.sel(weights_of="before").isnull().all()
    assert whole.sel(weights_of="own", words_of="before").isnull().all()
    first = open_arms(report / "run").sel(arm="tiny-cold")["words_effect"]
    assert first.notnull().all() and (first.std(("weights_of", "words_of")) == 0).all()
    page = (report / "index.html").read_text()
    assert "What moved, beyond the control, and through which path?" in page
    assert "by other weights on the words before" in page


def test_a_model_compared_with_itself_changes_nothing(report):
    found = findings.find(open_arms(report / "run"))
    same = found.changes.query("arm == 'again' and against == 'before'")
    assert len(same) > 50
    measured = same.dropna()
    assert (measured[["estimate", "lower", "upper"]].abs() < 1e-9).all(axis=None)
    other = found.changes.query("arm == 'tiny-saliency-r1' and against == 'before'")
    assert (other["estimate"].abs() > 1e-4).sum() > 20


def test_the_numbers_are_those_of_the_public_calls(report):
    """One image's exact effect, path and alignment, by hand."""
    run = open_arms(report / "run")
    vlm = interp.load_model("tiny-saliency-r1")
    samples = interp.load_samples("digits", split="test", limit=2)
    sample, name = samples[1], samples[1].id
    mine = run.sel(arm="tiny-saliency-r1", sample=name)
    edge = interp.extract.effects(vlm, sample, sources=("evidence",))
    is_answer = (edge["target_role"] == "answer").values
    expected = edge["effect"].isel(target=is_answer, source_set=0).mean("target")
    got = mine["effect"].sel(token_class="answer", source_set="evidence")
    np.testing.assert_allclose(got.sel(path=expected["path"]), expected, atol=1e-4)
    refs = interp.extract.references(vlm, sample, kinds=["twin"])
    exact = interp.extract.shapley(vlm, sample, references=refs, sources=("evidence",))
    live = exact["total"].sel(norm="live").isel(target=is_answer).squeeze()
    defined = exact["is_defined"].isel(target=is_answer).squeeze()
    assert bool(defined.any())
    at = {"token_class": "answer", "visual_set": "evidence", "reference": "twin"}
    assert float(mine["shapley_total"].sel(at)) == pytest.approx(
        float(live.where(defined).mean()), abs=1e-4
    )
    maps = interp.extract.maps(vlm, sample, kinds=("bottleneck",), only="answer")
    score = interp.alignment.alignment(interp.maps.holistic(maps), sample.boxes)
    at = {"text_of": "same", "rule": "direct"}
    assert float(mine["alignment"].sel(at)) == pytest.approx(float(score.alignment), abs=1e-4)
    own = vlm.answer(sample.image, sample.question)
    assert str(mine["written"].item()) == own.text


@pytest.mark.parametrize(
    ("moved", "total", "direct", "rest", "is_paid", "said"),
    [
        (1, 1, 1, -1, True, "grew with it"),
        (1, 0, 1, 0, True, "not decided"),  # not seen is not absent
        (1, 0, 1, -1, True, "That is reward hacking"),
        (1, -1, 1, 0, True, "That is reward hacking"),
        (1, -1, 1, 0, False, "only the direct part grew."),
        (1, -1, 0, -1, True, "not decided"),
        (0, 1, 1, 1, True, "its share, which is what a map shows, has no number"),
        (-1, 1, 1, 1, True, "its share, which is what a map shows, has no number"),
        (0, 0, 1, 1, True, "did not move measurably"),
        (-1, 0, 1, 1, True, "moved off"),
        (0, -1, 1, 1, True, "effect of the evidence fell"),
        (None, 1, 1, 1, True, "Not enough"),
        (1, None, 1, 1, True, "Not enough"),
    ],
)
def test_four_directions_are_read_as_one_sentence(moved, total, direct, rest, is_paid, said):
    read = words.reading(moved, total, direct, rest, is_paid=is_paid)
    assert said in read
    assert ("hacking" in read) == ("hacking" in said)


def test_the_model_before_is_had_from_its_own_adapters_alone():
    adapter, cold = interp.load_model("tiny-effect"), interp.load_model("tiny-cold")
    bare = {"adapter": "", "model_hash": cold.fingerprint}
    assert through_words.relation(cold, None) == "itself"
    assert through_words.relation(adapter, bare) == "base"
    assert through_words.relation(cold, bare) == ""  # another whole checkpoint
    # Without its adapter this one is tiny-cold, not the adapted model that was before.
    assert through_words.relation(adapter, bare | {"adapter": "tiny-saliency-r1"}) == ""
    assert through_words.relation(adapter, bare | {"model_hash": "other"}) == ""


def test_an_effect_that_grew_is_held_against_its_share_which_is_what_a_map_shows():
    read = [words.reading(0, 1, 1, 1, is_paid=True, share=share) for share in (1, 0, -1)]
    assert "share of the effect grew, and the map does not show it" in read[0]
    assert "is not seen to change" in read[1] and "fell" in read[2]
    assert not any("does not show" in one for one in read[1:])


def _row(low, high):
    return {"lower": low, "upper": high, "estimate": (low + high) / 2}


def test_a_direction_needs_all_intervals_on_one_side():
    assert words.direction([_row(0.1, 1), _row(0.2, 3)]) == 1
    assert words.direction([_row(-2, -0.1)]) == -1
    assert words.direction([_row(0.1, 1), _row(-0.2, 3)]) == 0
    assert words.direction([_row(np.nan, np.nan)]) is None


def planted(n=120):
    """Two models; in the second the evidence's direct write is larger by 1, its total is not."""
    rng = np.random.default_rng(0)
    total, direct = rng.normal(4, 1, n), rng.normal(1, 0.3, n)
    noise = rng.normal(0, 0.05, n)
    return [
        (np.stack([total, total + noise]),),
        (np.stack([direct, direct + 1 + noise]),),
        (np.stack([direct, direct + 1]), np.stack([total, total])),
    ]


def test_planted_changes_are_found_and_shares_are_ratios_of_sums():
    total, direct, share = (
        tuple(xr.DataArray(x, dims=("arm", "sample"), coords={"arm": ["a", "b"]}) for x in one)
        for one in planted()
    )
    found = findings._change(total, "b", "a", seed=0)
    assert found["lower"] < 0 < found["upper"]
    found = findings._change(direct, "b", "a", seed=0)
    assert 0.97 < found["lower"] < 1 < found["upper"] < 1.03
    level = findings._level(share, "a", seed=0)
    assert level["estimate"] == pytest.approx(float(share[0][0].sum() / share[1][0].sum()))
    gap = findings._change(share, "b", "a", seed=0)
    assert gap["estimate"] == pytest.approx(120 / float(share[1][0].sum()))
    none = (share[0], share[1] * 0 + 1e-3 * np.where(np.arange(120) % 2, 1, -1))
    assert np.isnan(findings._level(none, "a", seed=0)["estimate"])


def options(before, *after):
    return commands.parsed(
        BeforeAfterReport, "--limit", 2, "--no-witness", "--before", before, "--after", *after
    )


def adapter(folder, **changed):
    """tiny-effect's adapter, telling of another training."""
    shutil.copytree(ROOT / "interp/checkpoints/tiny-effect", folder)
    said = json.loads((folder / "base.json").read_text())
    assert said["base"] == "tiny-cold"
    (folder / "base.json").write_text(json.dumps(said | changed))
    return str(folder)


def test_models_that_cannot_be_compared_are_refused(tmp_path):
    other = adapter(tmp_path / "other", prompt="think")
    with pytest.raises(ValueError, match="expected adapters of one prompt"):
        measure.measure_run(options("tiny-cold", "tiny-effect", other), tmp_path / "a")
    coarse = adapter(tmp_path / "coarse", max_pixels=50_000)
    with pytest.raises(ValueError, match="expected adapters of one max_pixels"):
        measure.measure_run(options("tiny-cold", "tiny-effect", coarse), tmp_path / "b")
    with pytest.raises(ValueError, match="expected models with different names"):
        measure.measure_run(options("tiny-cold", "tiny-cold"), tmp_path / "c")


def measure_nothing(monkeypatch):
    """Leaves only the checks before and between the measurements."""
    monkeypatch.setattr(measure, "certificate", lambda *_: {})
    monkeypatch.setattr(measure, "write_run", lambda *_: None)


def test_adapters_of_another_base_are_refused(tmp_path, monkeypatch):
    measure_nothing(monkeypatch)
    with pytest.raises(ValueError, match="expected adapters of tiny, got tiny-effect of tiny-cold"):
        measure.measure_run(options("tiny", "tiny-effect"), tmp_path)


def test_bounds_of_images_are_those_of_the_training(tmp_path):
    coarse = adapter(tmp_path / "coarse", max_pixels=50_000)
    vlm = interp.load_model(coarse)
    assert vlm.processor.image_processor.size["longest_edge"] == 50_000
    again = interp.load_model(coarse, max_pixels=70_000)
    assert again.processor.image_processor.size["longest_edge"] == 70_000


def test_an_adapter_fits_its_base_in_any_dtype():
    assert interp.load_model("tiny-effect", dtype="bfloat16").model.dtype == torch.bfloat16


def test_samples_without_a_twin_or_a_background_keep_what_they_have(tmp_path):
    vlm = interp.load_model("tiny-cold")
    sample = replace(interp.load_samples("digits", limit=1)[0], twin=None)
    found = measure._effects(vlm, Pool(vlm, [sample]), sample, None, None)
    total = found["shapley_total"].sel(token_class="answer", visual_set="evidence")
    assert np.isfinite(total.sel(reference="mean"))
    assert np.isnan(total.sel(reference="twin"))
    whole = replace(sample, boxes=np.array([[0.0, 0.0, 1.0, 1.0]]))
    found = measure._effects(vlm, Pool(vlm, [whole]), whole, None, None)
    total = found["total"].sel(token_class="answer")
    assert np.isfinite(total.sel(source_set="evidence"))
    assert np.isnan(total.sel(source_set="background"))


def test_what_was_not_measured_on_a_sample_is_missing_and_not_an_end():
    whole = xr.Dataset({"a": 1.0, "b": ("path", [1, 2])}, coords={"path": ["x", "y"]})
    pieces = [one.expand_dims(sample=[name]) for name, one in (("s", whole), ("t", whole[["a"]]))]
    joined = stacking.join(pieces)
    assert np.isnan(joined["b"].isel(sample=1)).all()
    assert joined["b"].isel(sample=0).values.tolist() == [1, 2]


def test_a_model_that_is_not_there_is_said_in_one_line(tmp_path, monkeypatch, capsys):
    measure_nothing(monkeypatch)
    asked = ["x", "--limit", "2", "--after", "no-such-model", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", asked)
    assert before_after.main() == 2
    assert "got 'no-such-model'" in capsys.readouterr().err


def test_a_rule_without_a_title_is_an_error_and_not_taken_for_unpaid():
    assert words._rule("effect") == "effect"
    assert words._rule("none") == words._rule("") == "direct"
    with pytest.raises(ValueError, match="expected a rule of .* got 'words'; give it a title"):
        words._rule("words")


@pytest.mark.parametrize(
    ("said", "paid"),
    [
        ({"map": "direct"}, "direct"),
        ({"map": "direct", "saliency_weight": 0}, "none"),
        ({"map": "none"}, "none"),
        ({}, ""),
        ({"map": "direct", "placebo": "rolled"}, ""),
        ({"map": "none", "ease_weight": 0.1}, ""),
        ({"map": "none", "gradient_weight": 0.2}, ""),
        ({"map": "none", "counterfactual": "in-box"}, ""),
    ],
)
def test_a_placebo_or_another_loss_is_no_control(tmp_path, monkeypatch, said, paid):
    """Only accuracy and format alone is what maps are compared with."""
    monkeypatch.setattr(models, "_said", lambda _name: said)
    assert models.reward_of(str(tmp_path))["map"] == paid
