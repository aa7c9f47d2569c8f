"""The alignment score, its controls, and the release's number (METHODS.md 4)."""

import numpy as np
import pytest
import xarray as xr

import interp
from interp.maps.alignment import alignment, chance, released_score, shifts


def on_grid(values) -> xr.DataArray:
    return xr.DataArray(np.asarray(values, dtype=float), dims=("row", "column"))


BOXES = np.array([[0.0, 0.0, 0.5, 0.5], [0.25, 0.25, 0.75, 0.75]])


def test_a_uniform_map_scores_the_boxes_area_on_any_grid():
    for shape in ((4, 4), (3, 5), (7, 2)):
        found = alignment(on_grid(np.ones(shape)), BOXES)
        assert float(found.alignment) == pytest.approx(0.25 + 0.25 - 0.0625)
        assert float(found.chance) == pytest.approx(chance(BOXES)) == float(found.alignment)
        assert float(found.alignment_center) == pytest.approx(float(found.chance))
        n = shape[0] * shape[1]
        inner = max(0, shape[0] - 2) * max(0, shape[1] - 2)
        assert float(found.border_share) == pytest.approx((n - inner) / n)


def test_mass_is_weighed_by_exact_overlap_and_negative_values_do_not_count():
    saliency = on_grid([[4.0, 0.0, -100.0], [0.0, 2.0, 0.0]])  # rows of 1/2, columns of 1/3
    box = np.array([[0.0, 0.0, 0.5, 0.75]])
    # Cell (0, 0) is wholly inside; cell (1, 1) to half its width and half its height.
    found = alignment(saliency, box)
    assert float(found.alignment) == pytest.approx((4 * 1 + 2 * 0.25) / 6)
    turned = alignment(saliency.transpose("column", "row"), box)
    assert float(turned.alignment) == float(found.alignment)


def test_scores_of_nothing_and_of_something_else(processor):
    assert not alignment(on_grid(-np.ones((3, 3))), BOXES).has_mass
    assert float(alignment(on_grid(np.zeros((3, 3))), BOXES).alignment) == 0
    spot = np.zeros((8, 8))
    spot[0, 0] = 1
    corner = np.array([[0.0, 0.0, 0.125, 0.125]])
    found = alignment(on_grid(spot), corner)
    assert float(found.alignment) == 1
    assert float(found.alignment_shuffled) == 0 == float(found.alignment_center)
    with pytest.raises(ValueError, match="finite map"):
        alignment(on_grid([[np.nan]]), BOXES)
    with pytest.raises(ValueError, match="in 0..1"):
        alignment(on_grid(spot), np.array([[0.0, 0.0, 2.0, 0.5]]))
    with pytest.raises(ValueError, match="dimensions"):
        alignment(on_grid(spot).rename(row="y"), BOXES)


def test_boxes_are_moved_together_to_every_other_place():
    """Moved one by one these two would overlap less, and a uniform map score more than its due."""
    nested = np.array([[0.25, 0.25, 0.75, 0.75], [0.25, 0.25, 0.5, 0.5]])
    uniform = alignment(on_grid(np.ones((4, 8))), nested)
    assert float(uniform.alignment_shuffled) == pytest.approx(float(uniform.chance)) == 0.25
    # Down by one cell or up by one, and left or right by up to two: all places but its own.
    places = {(round(x * 8), round(y * 4)) for x, y, *_ in shifts(nested, (4, 8))}
    assert places == {(x, y) for x in range(-2, 3) for y in (-1, 0, 1)} - {(0, 0)}
    # All mass is in the upper left corner, which one place of the fourteen covers.
    spot = np.zeros((4, 8))
    spot[0, 0] = 1.0
    assert float(alignment(on_grid(spot), nested).alignment_shuffled) == pytest.approx(1 / 14)
    whole = np.array([[0.0, 0.0, 1.0, 0.9]])  # can be moved nowhere by a whole cell
    assert np.isnan(alignment(on_grid(np.ones((4, 8))), whole).alignment_shuffled)


def test_the_releases_score_is_ours_on_square_images_alone():
    rng = np.random.default_rng(0)
    saliency = on_grid(rng.uniform(0, 1, (8, 8)))
    box = np.array([0.25, 0.25, 0.75, 0.75])
    ours = float(alignment(saliency, box[np.newaxis]).alignment)
    assert released_score(saliency, box, (448, 448)) == pytest.approx(ours, abs=0.02)
    # A portrait's box loses its lower end: three quarters of 224 lie above half of 448.
    low = np.array([0.25, 0.5, 0.75, 0.75])
    assert released_score(saliency, low, (448, 224)) == 0
    assert float(alignment(saliency, low[np.newaxis]).alignment) > 0.1


# ------------------------------------------------------------------------------------- ds.vlm


def test_the_accessor_reads_what_is_there_and_names_the_missing_call():
    vlm = interp.load_model("tiny")
    sample = interp.load_samples("digits", split="test", limit=3)[2]
    ds = interp.extract.maps(vlm, sample, kinds=("direct", "bottleneck"))
    ledger = interp.extract.ledger(vlm, sample)
    assert ds.vlm.kinds == ["direct", "bottleneck"] and ledger.vlm.kinds == ["direct"]
    np.testing.assert_allclose(ds.vlm.map(), ledger.vlm.map("answer"), atol=1e-5)
    tokens = [str(token).strip() for token in ds.target_token.values]
    once = next(k for k, token in enumerate(tokens) if tokens.count(token) == 1 and token)
    np.testing.assert_array_equal(ds.vlm.map(tokens[once]), ds.vlm.map(once))
    np.testing.assert_allclose(ds.vlm.map(kind="holistic"), interp.maps.holistic(ds), atol=0)
    for dataset, target in ((ledger, "answer"), (ds, 3)):
        with pytest.raises(ValueError, match="dataset of interp.extract.maps and the role"):
            dataset.vlm.map(target, "holistic")
    with pytest.raises(ValueError, match=r"kinds=\('edge',\)\) makes it"):
        ds.vlm.map(kind="edge")
    with pytest.raises(ValueError, match=r"kinds=\('effect',\)\) makes it"):
        ledger.vlm.map(kind="effect")
    summary = interp.extract.ledger(vlm, sample, detail="summary")
    with pytest.raises(ValueError, match=r"interp.extract.maps\(vlm, sample\) makes one"):
        summary.vlm.plot()
    ax = ds.vlm.plot(3, "bottleneck", image=sample.image, boxes=sample.boxes)
    assert len(ax.images) == 2 and len(ax.patches) == len(sample.boxes)
    signed = ds.vlm.plot(3, limit=7.0, image=False, boxes=[])
    assert signed.images[0].get_clim() == (-7.0, 7.0)
    n_below = int((ds.vlm.map(3) < -0.35).sum())
    assert len(signed.patches) == n_below  # hatched
    strip = ds.vlm.strip("direct")
    assert strip.images[0].get_array().shape == (1, ds.sizes["target"])
    expected = ledger.direct.isel(source=(ledger.image >= 0).values).sum(
        ["layer", "head", "source"]
    )
    np.testing.assert_allclose(strip.images[0].get_array()[0], expected, atol=1e-4)
