"""Deletion and insertion, and the report on maps (METHODS.md 4)."""

import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image

import interp
from interp import faithfulness as module
from interp.data.images import blank
from interp.faithfulness import changed, faithfulness, pixel_order
from interp.measures import normalised


@pytest.fixture(scope="module")
def samples():
    return interp.load_samples("digits", split="test", limit=6)


def test_pixels_in_order_and_canvases():
    saliency = xr.DataArray([[0.0, 1.0], [3.0, 2.0]], dims=("row", "column"))
    order = pixel_order(saliency, (8, 4))
    assert sorted(order) == list(range(32))
    first = np.unravel_index(order[0], (4, 8))
    assert first[0] >= 2 and first[1] < 4  # in the cell with the largest value
    flat = pixel_order(xr.zeros_like(saliency), (8, 4))
    assert flat.tolist() == list(range(32))  # ties by raster order
    original = np.full((4, 8, 3), 200, dtype=np.uint8)
    empty = np.full((4, 8, 3), 10, dtype=np.uint8)
    for change, kept, painted in (("deletion", 200, 10), ("insertion", 10, 200)):
        canvas = changed(original, empty, order, change, 0.25).reshape(-1, 3)
        assert (canvas[order[:8]] == painted).all() and (canvas[order[8:]] == kept).all()
    assert (changed(original, empty, order, "deletion", 1.0) == empty).all()
    assert (changed(original, empty, order, "insertion", 1.0) == original).all()


def test_likelihoods_are_the_models_own(tiny, samples):
    """Against one whole forward per canvas, its text scored by hand."""
    sample = samples[0]
    completion = tiny.answer(sample.image, sample.question)
    saliency = interp.maps.holistic(
        interp.extract.maps(tiny, sample, completion=completion, kinds=("direct",)), "direct"
    )
    shares = (0.3, 1.0)
    found = faithfulness(
        tiny, sample, {"direct": saliency}, completion=completion, shares=shares, at_once=2
    )
    size = saliency.sizes["column"] * 28, saliency.sizes["row"] * 28
    original = np.asarray(sample.image.resize(size, Image.Resampling.BICUBIC))
    empty, order = np.asarray(blank(tiny.processor, size)), pixel_order(saliency, size)
    canvas = Image.fromarray(changed(original, empty, order, "deletion", 0.3))
    for image, mine in (
        (canvas, found.log_likelihood.sel(explainer="direct", change="deletion", share=0.3)),
        (Image.fromarray(original), found.of_original),
        (Image.fromarray(empty), found.of_blank),
    ):
        made = interp.inputs.prompts.prompts(tiny.processor, [(image, sample.question)], None)
        ids = torch.tensor([completion.token_ids])
        n = made["input_ids"].shape[1]
        made["input_ids"] = torch.cat([made["input_ids"], ids], dim=1)
        for name in ("attention_mask", "mm_token_type_ids"):
            rest = torch.full_like(ids, int(name == "attention_mask"), dtype=made[name].dtype)
            made[name] = torch.cat([made[name], rest], dim=1)
        with torch.no_grad():
            scores = tiny.model(**made).logits[0, n - 1 : -1].log_softmax(-1)
        each = scores.gather(1, ids[0][:, None])[:, 0]
        assert float(mine.sel(text="all")) == pytest.approx(float(each.mean()), abs=1e-4)
        # The answer is one token before the end token.
        assert float(mine.sel(text="answer")) == pytest.approx(float(each[-2]), abs=1e-4)
    whole = found.log_likelihood.sel(share=1.0, explainer="direct")
    np.testing.assert_allclose(whole.sel(change="deletion"), found.of_blank, atol=1e-5)
    np.testing.assert_allclose(whole.sel(change="insertion"), found.of_original, atol=1e-5)


def test_normalisation_is_0_on_blank_and_100_on_the_original(tiny, samples):
    sample = samples[0]
    one = xr.DataArray(np.eye(3, 5), dims=("row", "column"))
    found = faithfulness(tiny, sample, {"any": one}, shares=(1.0,))
    part, whole = normalised(found)
    ratio = (part / whole).sel(share=1.0, explainer="any")
    np.testing.assert_allclose(ratio.sel(change="deletion"), 0, atol=1e-3)
    np.testing.assert_allclose(ratio.sel(change="insertion"), 100, atol=1e-3)


def test_the_evidence_matters_more_than_what_lies_apart(tiny, samples):
    """A map of the evidence itself against its complement."""
    part, whole = [], []
    for sample in samples:
        ds = interp.extract.maps(tiny, sample, kinds=("direct",))
        on = interp.maps.on_grid(ds["box_overlap"])
        scores = faithfulness(tiny, sample, {"evidence": on, "rest": 1 - on}, shares=(0.15,))
        a, b = normalised(scores.sel(text="answer", share=0.15))
        part.append(a)
        whole.append(b)
    score = sum(part) / sum(whole)
    assert score.sel(explainer="evidence", change="deletion") < score.sel(
        explainer="rest", change="deletion"
    )
    assert score.sel(explainer="evidence", change="insertion") > score.sel(
        explainer="rest", change="insertion"
    )


def test_bad_maps_are_refused(tiny, samples):
    good = xr.DataArray(np.ones((3, 5)), dims=("row", "column"))
    for maps, message in (
        ({}, "one or more maps"),
        ({"a": good[:2]}, r"a: expected a map of \(3, 5\) patches"),
        ({"a": good * np.nan}, "a: expected a finite map"),
        ({"a": good.rename(row="y")}, "dimensions"),
    ):
        with pytest.raises(ValueError, match=message):
            module.faithfulness(tiny, samples[0], maps)
