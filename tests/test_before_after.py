"""Before and after training: a run of two models, its tables, its words."""

import json
import re
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import interp
from analyses import arms_findings, arms_run, arms_wording

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The command on six scenes: the cold start, the same again, and a trained adapter."""
    out = tmp_path_factory.mktemp("arms")
    again = tmp_path_factory.mktemp("models") / "again"
    again.symlink_to(ROOT / "interp/checkpoints/tiny-cold")
    done = subprocess.run(
        [sys.executable, "analyses/before_after.py", "--limit", "6", "--before", "tiny-cold",
         "--after", "tiny-saliency-r1", str(again), "--no-witness", "--out", str(out)],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "6 samples ok, 0 skipped, 0 failed" in done.stdout
    return out


def test_the_report_is_whole_and_redraws_byte_for_byte(report, tmp_path):
    page = (report / "index.html").read_text()
    assert "Did the map move because the effect moved?" in page
    assert not re.search(r"\bnan\b", re.sub(r"base64,[^\"]*", "", page))
    assert {p.stem for p in (report / "figures").glob("*.pdf")} == {
        "alignment", "effects", "paths", "curves", "examples"}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "analyses/before_after.py", "--from-run", str(report / "run"),
         "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=600,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("index.html", "tables/levels.csv", "tables/changes.csv", "figures/effects.svg"):
        assert (tmp_path / name).read_bytes() == (report / name).read_bytes(), name


def test_a_model_compared_with_itself_changes_nothing(report):
    found = arms_findings.find(interp.open_run(report / "run"))
    same = found.changes.query("arm == 'again' and against == 'tiny-cold'")
    assert len(same) > 50
    measured = same.dropna()
    assert (measured[["estimate", "lower", "upper"]].abs() < 1e-9).all(axis=None)
    other = found.changes.query("arm == 'tiny-saliency-r1' and against == 'tiny-cold'")
    assert (other["estimate"].abs() > 1e-4).sum() > 20


def test_the_numbers_are_those_of_the_public_calls(report):
    """One image's exact effect, path and alignment, by hand."""
    run = interp.open_run(report / "run")
    vlm = interp.load_model("tiny-saliency-r1")
    samples = interp.load_samples("digits", split="test", limit=6)
    sample, name = samples[2], samples[2].id
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
    ("moved", "effect", "direct", "said"),
    [
        (1, 1, 0, "grew with it"),
        (1, 0, 1, "reward hacking"),
        (1, -1, 1, "reward hacking"),
        (1, 0, 0, "without the evidence mattering more"),
        (0, 1, 1, "nothing to explain"),
        (-1, 1, 1, "moved off"),
        (None, 1, 1, "Not enough"),
        (1, None, 1, "Not enough"),
    ],
)
def test_three_directions_are_read_as_one_sentence(moved, effect, direct, said):
    assert said in arms_wording.reading(moved, effect, direct)


def _row(low, high):
    return {"lower": low, "upper": high, "estimate": (low + high) / 2}


def test_a_direction_needs_all_intervals_on_one_side():
    assert arms_wording.direction([_row(0.1, 1), _row(0.2, 3)]) == 1
    assert arms_wording.direction([_row(-2, -0.1)]) == -1
    assert arms_wording.direction([_row(0.1, 1), _row(-0.2, 3)]) == 0
    assert arms_wording.direction([_row(np.nan, np.nan)]) is None


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
    found = arms_findings._change(total, "b", "a")
    assert found["lower"] < 0 < found["upper"]
    found = arms_findings._change(direct, "b", "a")
    assert 0.97 < found["lower"] < 1 < found["upper"] < 1.03
    level = arms_findings._level(share, "a")
    assert level["estimate"] == pytest.approx(float(share[0][0].sum() / share[1][0].sum()))
    gap = arms_findings._change(share, "b", "a")
    assert gap["estimate"] == pytest.approx(120 / float(share[1][0].sum()))
    none = (share[0], share[1] * 0 + 1e-3 * np.where(np.arange(120) % 2, 1, -1))
    assert np.isnan(arms_findings._level(none, "a")["estimate"])


def test_models_with_other_prompts_or_tokens_are_refused(tmp_path):
    manifest = json.loads((ROOT / "interp/checkpoints/tiny-saliency-r1/base.json").read_text())
    assert manifest["base"] == "tiny-cold"
    done = subprocess.run(
        [sys.executable, "analyses/before_after.py", "--limit", "2", "--before", "tiny-cold",
         "--after", "no-such-model", "--out", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "got 'no-such-model'" in done.stderr
    with pytest.raises(ValueError, match="expected models with different names"):
        arms_run.run_arms(Namespace(before="tiny-cold", after=["tiny-cold"]), tmp_path)
