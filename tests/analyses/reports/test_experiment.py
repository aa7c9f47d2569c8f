"""The experiment's rule, on runs that are made up so that the answer is known."""

import json

import numpy as np
import pandas as pd
import pytest

from analyses.reports.experiment import crossed as draws
from analyses.reports.experiment import findings, words
from analyses.reports.experiment.crossed import RESAMPLES, crossed, gap, share_of
from analyses.reports.experiment.page import write
from analyses.reports.experiment.quantities import (
    ALIGNED,
    EXPLORATORY,
    HACKED,
    PLAYERS,
    SETS,
    SHARE,
    SIGNED,
)
from analyses.reports.experiment.results import results

N = 120
OTHERS = [f"{kind} {one} contrast" for kind in ("edge", "direct") for one in SETS]
OTHERS += [f"node {one} centered" for one in SETS] + [f"words {one}" for one in PLAYERS]
OTHERS += [f"alignment {kind}" for kind in ALIGNED] + ["area", "deletion", "deletion whole"]
OTHERS += ["insertion", "insertion whole", "pixels evidence contrast", "vector evidence contrast"]


def written(folder, arm, seed, *, share=0.5, right=0.5, placebo=None, scenes="ordinary"):
    """A run in which the evidence has that share of every image's effect."""
    rng = np.random.default_rng([seed, len(arm), len(scenes)])
    order = rng.permutation(N)  # files need no common order
    whole = rng.uniform(1, 3, N)
    is_right = (np.arange(N) < round(right * N))[order].astype(float)
    table = {
        "sample": [f"scene-{k:03d}" for k in order],
        "family": ["sum" if k % 3 else "count" for k in order],
        "right": is_right.tolist(),
        "node evidence contrast": (share * whole).tolist(),
        "node background contrast": (-(1 - share) * whole).tolist(),
    }
    table |= {name: rng.random(N).tolist() for name in OTHERS}
    facts = {
        "arm": arm,
        "title": arm,
        "placebo": placebo,
        "seed": seed,
        "base": "tiny-cold",
        "place": len(arm),
    }
    facts |= {"steps": 150, "adapter_hash": "0"}
    measured = {"ordinary": table, "broken": table, "shortcut": table}
    path = folder / "experiment" / f"{arm}_{scenes}_{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts | {"scenes": scenes, "measures": measured}))


MOVED = {"map-gradient": (0.8, 0.7), "ease": (0.8, 0.3), "saliency-r1": (0.5, 0.3)}
"""The map gradient moves both, EASE the share alone, Saliency-R1 neither."""


def whole(folder, moved=MOVED, learnt=0.8, n_seeds=5):
    """The runs of the three arms with both endpoints, their placebos, control and before."""
    written(folder, "before", 0, right=0.4)
    for seed in range(n_seeds):
        written(folder, "control", seed, right=learnt)
        for arm, (share, right) in moved.items():
            for scenes in ("ordinary", "shortcut"):
                jittered = share + 0.01 * (seed - 2)
                like = {"scenes": scenes, "placebo": f"{arm}-sham"}
                written(folder, arm, seed, share=jittered, right=right, **like)
                written(folder, f"{arm}-sham", seed, right=0.3, scenes=scenes)


@pytest.fixture
def runs(tmp_path):
    whole(tmp_path)
    return results(folder=tmp_path)


def test_verdicts_of_known_runs(runs):
    found = {one.arm: one for one in findings.find(runs)}
    verdicts = {arm: one.verdict for arm, one in found.items()}
    assert verdicts == {
        "map-gradient": "moves what the model uses",
        "ease": "not shown",
        "saliency-r1": "does not move it",
    }
    share = found["ease"].gaps[SHARE.title]
    assert share.estimate == pytest.approx(0.3)
    assert share.lower > 0.27
    assert share.upper < 0.33
    assert np.allclose(share.seeds, [0.28, 0.29, 0.3, 0.31, 0.32])


def test_background_against_the_answer_does_not_raise_the_share(runs):
    """|T_B|, not T_B: with it the line below is 0.78 − 0.22 here, and the share above 1."""
    key = ("tiny", "ordinary", "map-gradient")
    statistic = findings.statistic(runs, key, SHARE, [0])
    assert statistic(np.ones((1, N)))[0, 0] == pytest.approx(0.78)
    hacked = findings.level(runs, "map-gradient", HACKED)
    assert hacked.estimate == pytest.approx(-0.2)


def test_nothing_is_assessable_where_the_control_learnt_nothing(tmp_path):
    whole(tmp_path, learnt=0.45)
    assert {one.verdict for one in findings.find(results(folder=tmp_path))} == {"not assessable"}


@pytest.mark.parametrize("lost", ["ease_ordinary_4", "saliency-r1-sham_shortcut_2", "ease_*"])
def test_nothing_is_judged_while_one_run_of_the_plan_is_missing(tmp_path, lost):
    """A rule over fewer seeds would be another rule, and one seed has no interval over seeds."""
    whole(tmp_path, n_seeds=5)
    for path in (tmp_path / "experiment").glob(f"{lost}.json"):
        path.unlink()
    for path in (tmp_path / "experiment").glob("*_shortcut_[34].json"):
        path.unlink()  # the plan has three there
    found = findings.find(results(folder=tmp_path))
    assert found and {one.verdict for one in found} == {findings.MISSING}
    assert words.headline(found).startswith("Runs are missing: the rule judges nothing yet")


def test_an_image_without_an_endpoint_is_an_error(tmp_path):
    whole(tmp_path)
    path = tmp_path / "experiment/ease_ordinary_1.json"
    content = json.loads(path.read_text())
    content["measures"]["ordinary"]["node background contrast"][7] = None
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="exact effect .* of every image, got none of .'scene-"):
        findings.find(results(folder=tmp_path))


def test_one_endpoint_is_no_claim(tmp_path):
    whole(tmp_path)
    for seed in range(3):
        written(tmp_path, "effect", seed, share=0.9, placebo="effect-rolled")
        written(tmp_path, "effect-rolled", seed, share=0.5)
    found = {one.arm: one.verdict for one in findings.find(results(folder=tmp_path))}
    assert found["effect"] == "exploratory: one endpoint"
    assert found["map-gradient"] == findings.MOVES


def test_no_run_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="make experiment"):
        results(folder=tmp_path)


def test_holm_stops_at_the_first_that_fails():
    assert findings.holm({"a": 0.01, "b": 0.04, "c": 0.03}) == {"a"}
    assert findings.holm({"a": 0.01, "b": 0.024, "c": 0.05}) == {"a", "b", "c"}
    assert findings.holm({"a": 0.026, "b": 0.026}) == set()


def test_interval_of_seeds_alone_is_that_of_a_mean():
    """Without images that differ, the interval is ± 1.96 s / √n, s with n − 1 below the line."""
    values = np.array([0.1, 0.4, 0.2, 0.6, 0.3, 0.5, 0.25, 0.45])
    found = crossed(lambda w: np.broadcast_to(values, (len(w), 8)), np.zeros(10), 8)
    half = 1.96 * values.std(ddof=1) / np.sqrt(8)
    assert found.estimate == pytest.approx(values.mean())
    assert (found.upper - found.lower) / 2 == pytest.approx(half, rel=0.04)
    assert found.p == pytest.approx(2 / (RESAMPLES + 1))


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng, hits = np.random.default_rng(1), 0
    for number in range(60):
        image, own = rng.normal(0, 1, 60), rng.normal(0, 0.2, 5)
        values = own[:, np.newaxis] + image + rng.normal(0, 0.5, (5, 60))
        found = crossed(share_of(values, np.ones_like(values)), np.zeros(60), 5, seed=number)
        hits += found.lower <= 0 <= found.upper
    assert 0.85 <= hits / 60 <= 1


def test_images_are_resampled_within_their_family():
    """Two families that differ from each other alone leave no interval at all."""
    values = np.array([[0.0, 0.0, 1.0, 1.0]])
    one = share_of(values, np.ones_like(values))
    assert crossed(one, np.array(["a", "a", "b", "b"]), 1).upper == pytest.approx(0.5)
    assert crossed(one, np.array(["a"] * 4), 1).upper > 0.9
    none = crossed(gap(one, one), np.array(["a"] * 4), 1)
    assert (none.lower, none.upper, none.p) == (0, 0, 1)


def test_page_says_what_the_rule_says(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(draws, "RESAMPLES", 1000)
    plan = tmp_path / "plan.md"
    plan.write_text("fixed beforehand")
    assert write(tmp_path / "out", tmp_path, plan) == len(runs)
    page = (tmp_path / "out/index.html").read_text()
    assert "map-gradient moves what the model uses" in page
    assert "saliency-r1 does not move what the model uses" in page
    assert "ease is not shown to move what the model uses" in page
    assert "<li>map-gradient, minus its placebo: evidence&#39;s share" in page
    table = pd.read_csv(tmp_path / "out/tables/quantities.csv").fillna({"against": ""})
    row = table.query("arm == 'ease' and against == 'placebo' and quantity == @SHARE.title")
    assert row["estimate"].item() == pytest.approx(0.3)
    of_signed = table[table["quantity"] == SIGNED.title]
    signed = of_signed.query("arm == 'ease' and against == ''")
    assert signed["estimate"].item() == pytest.approx(0.8 / 0.6, rel=0.01)
    none = of_signed.query("arm == 'ease-sham' and against == ''")
    assert none["estimate"].isna().all()  # 0.5 for the answer and 0.5 against it


def test_images_without_a_number_count_neither_above_nor_below_the_line():
    quantity = next(one for one in EXPLORATORY if one.title.startswith("deletion"))
    table = pd.DataFrame({"sample": ["b", "a"], "deletion": [None, 30.0]})
    table["deletion whole"] = [5.0, 0.5]
    assert quantity.arrays(table).tolist() == [[30.0, 0.0], [0.5, 0.0]]
