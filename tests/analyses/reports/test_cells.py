"""Cells of the first game, and controls, on made-up runs with known answers (METHODS.md 3.6)."""

import numpy as np
import pytest
import xarray as xr

from analyses.reports.direct_vs_indirect import cells
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


def test_undefined_targets_are_left_out_and_means_are_over_images():
    run = made_run(0.8)
    run["node_defined"].loc[{"reference": "twin"}] = False
    run["shapley"].loc[{"reference": "twin"}] = 0
    found = cells.find(run, seed=0)
    assert set(found.reference) == {"mean", "other"}
    one = found.iloc[0]
    chosen = run.sel(
        visual_set=one.source_set, reference=one.reference, norm=one.norm, gauge=one.gauge
    ).isel(target=(run.target_role == one.token_class).values)
    p1 = chosen["shapley"].sel(path_class=PATH_CLASSES[0]).values
    te = chosen["shapley_total"].values
    assert one.delta == pytest.approx((2 * p1 - te).mean())
    assert one.share == pytest.approx(p1.sum() / te.sum())
    assert one.delta_lower < one.delta < one.delta_upper


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
