"""The pre-registered verdict on made-up runs with known answers (METHODS.md 3.6)."""

import numpy as np
import pytest
import xarray as xr

from analyses.reports.direct_vs_indirect import verdict
from interp.vocabulary import PATH_CLASSES

SETS = ["image", "evidence", "image-nosink", "evidence-nosink"]
SHAPE = {"visual_set": 4, "reference": 3, "norm": 2, "gauge": 2}


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch):
    monkeypatch.setattr("interp.stats.RESAMPLES", 500)


def made_run(share, total=4.0, n_images=120, spread=1.0, seed=0, sinks=True):
    """Images with one answer and two thinking tokens; P1 is a share of a noisy total effect."""
    rng = np.random.default_rng(seed)
    roles = ["answer", "thinking", "thinking"]
    n_targets = 3 * n_images
    te = total + spread * rng.standard_normal((n_targets, *SHAPE.values()))
    p1 = share * te + 0.1 * rng.standard_normal(te.shape)
    cells = np.stack([p1, te - p1, np.zeros_like(te)], axis=3)
    dims = ("target", "visual_set", "reference", "path_class", "norm", "gauge")
    names = np.repeat([f"s{k}" for k in range(n_images)], 3)
    return xr.Dataset(
        {
            "shapley": (dims, cells),
            "shapley_strict": (dims, cells.copy()),
            "shapley_total": (tuple(d for d in dims if d != "path_class"), te),
            "node_defined": (dims[:3], np.ones(te.shape[:3], dtype=bool)),
        },
        coords={
            "sample": [f"s{k}" for k in range(n_images)],
            "visual_set": SETS,
            "reference": ["mean", "other", "twin"],
            "path_class": list(PATH_CLASSES),
            "norm": ["live", "frozen"],
            "gauge": ["centered", "contrast"],
            "source_role": ("source", ["image"]),
            "n_sinks": ("sample", np.full(n_images, int(sinks))),
            "target_role": ("target", roles * n_images),
            "target_sample": ("target", names),
        },
    )


def headline(run):
    found = verdict.judge(run, seed=0)
    return next(j for j in found.judgements if (j.token_class, j.source_set) == ("answer", "image"))


@pytest.mark.parametrize(
    ("share", "decision"), [(0.8, "supported"), (0.2, "refuted"), (0.5, "not shown")]
)
def test_decisions_follow_the_share(share, decision):
    found = headline(made_run(share))
    assert found.decision == decision == found.strict_decision
    assert found.passing == ("mean", "other", "twin")
    if decision != "not shown":
        assert "all 24 cells" in found.reason


def test_one_cell_that_disagrees_is_named():
    run = made_run(0.8)
    at = {"path_class": PATH_CLASSES[0], "reference": "twin", "norm": "frozen", "gauge": "contrast"}
    run["shapley"].loc[at] = (
        0.3 * run["shapley_total"].loc[{k: v for k, v in at.items() if k != "path_class"}]
    )
    found = headline(run)
    assert found.decision == "not shown" and found.strict_decision == "supported"
    assert "twin, contrast, frozen" in found.reason
    assert "22 of 24 cells" in found.reason  # with and without sinks
    run["n_sinks"] = xr.zeros_like(run["n_sinks"])
    assert "11 of 12 cells" in headline(run).reason


def test_a_set_that_is_all_sinks_decides_nothing():
    for defined in (0, 5):
        run = made_run(0.9)
        mine = np.isin(run["target_sample"].values, [f"s{k}" for k in range(defined)])
        run["node_defined"].loc[{"visual_set": "image-nosink"}] = xr.DataArray(mine, dims="target")
        found = headline(run)
        assert found.decision == "not shown"
        assert f"without its sinks the set is there in {defined} of" in found.reason


def test_no_effect_has_no_vote():
    found = headline(made_run(0.9, total=0.3, spread=0.05))  # positive everywhere, but small
    assert found.decision == "no effect" and found.passing == ()
    assert "mean (mean TE may be as low as 0.2" in found.reason
    found = headline(made_run(0.9, total=2.0, spread=3.5))  # large, but often negative
    assert found.decision == "no effect" and "TE ≤ 0 in" in found.reason
    run = made_run(0.9, total=0.02)
    few = np.isin(run["target_sample"].values, [f"s{k}" for k in range(30)])
    run["node_defined"].loc[{"reference": "twin"}] = xr.DataArray(few, dims="target")
    assert "twin (30 of 100 images)" in headline(run).reason
    assert "without a vote: Δ is" in headline(run).reason


def test_the_gate_wants_both_gauges_and_few_negative_images():
    run = made_run(0.9)
    run["shapley_total"].loc[{"gauge": "contrast", "reference": ["mean", "other"]}] -= 3.9
    found = headline(run)
    assert found.decision == "not shown" and found.passing == ("twin",)
    assert "only the reference twin" in found.reason
    run = made_run(0.9, total=2.0, spread=3.5)  # the mean is large, but many images are below 0
    gates = verdict.judge(run, seed=0).gates
    answers = gates[(gates.token_class == "answer") & (gates.source_set == "image")]
    assert (answers.lower > 0.5).all() and (answers.share_negative > 0.1).all()
    assert headline(run).decision == "no effect"


def test_too_few_images_decide_nothing():
    found = headline(made_run(0.9, n_images=60))
    assert found.decision == "not shown" and "100 images" in found.reason and "60" in found.reason


def test_undefined_targets_are_left_out_and_means_are_over_images():
    run = made_run(0.8)
    run["node_defined"].loc[{"reference": "twin"}] = False
    run["shapley"].loc[{"reference": "twin"}] = 0
    found = verdict.judge(run, seed=0)
    assert headline(run).passing == ("mean", "other")
    assert set(found.cells.reference) == {"mean", "other"}
    one = found.cells.iloc[0]
    chosen = run.sel(
        visual_set=one.source_set, reference=one.reference, norm=one.norm, gauge=one.gauge
    ).isel(target=(run.target_role == one.token_class).values)
    p1 = chosen["shapley"].sel(path_class=PATH_CLASSES[0]).values
    te = chosen["shapley_total"].values
    assert one.delta == pytest.approx((2 * p1 - te).mean())
    assert one.share == pytest.approx(p1.sum() / te.sum())
    assert one.delta_lower < one.delta < one.delta_upper


def test_sentences_say_what_was_decided():
    from analyses.reports.direct_vs_indirect.words import verdict_sentence

    refuted = headline(made_run(0.2))
    assert "carries less than everything else" in verdict_sentence(refuted)
    assert "agrees" in verdict_sentence(refuted)
    run = made_run(0.8)
    strict = {"path_class": PATH_CLASSES[0]}
    run["shapley_strict"].loc[strict] = 0.2 * run["shapley_total"]
    found = headline(run)
    assert (found.decision, found.strict_decision) == ("supported", "refuted")
    assert "another verdict: refuted" in verdict_sentence(found)


def records(control, totals, gauge="contrast", reference="mean"):
    return [
        {"control": control, "sample": f"s{k}", "reference": reference, "gauge": gauge, "total": t}
        for k, t in enumerate(totals)
    ]


def test_controls_hold_where_nothing_is_found():
    from analyses.reports.direct_vs_indirect.all_paths import _controls

    rng = np.random.default_rng(1)
    noise = rng.standard_normal(100)
    made = [
        *records("random weights", 0.1 * noise, "centered"),
        *records("random weights", 3 + 0.1 * noise, "contrast"),  # one gauge alone is no gate
        *records("random weights", 3 + 0.1 * noise, "centered", "twin"),
        *records("random weights", 3 + 0.1 * noise, "contrast", "twin"),
        *records("shuffled targets", -2 + noise),
        *records("shuffled targets", noise, "centered"),
        *records("wrong image", 2 + noise),
    ]
    found = _controls(made, 0).set_index(["control", "reference", "gauge"])["holds"]
    assert found["random weights", "mean", "centered"] is True
    assert found["random weights", "mean", "contrast"] is True
    assert found["random weights", "twin", "contrast"] is False
    assert found["shuffled targets", "mean", "contrast"] is True
    assert found["shuffled targets", "mean", "centered"] is None
    assert found["wrong image", "mean", "contrast"] is False
    alone = _controls(records("wrong image", [-3.0]), 0)
    assert alone["holds"].tolist() == [None]
