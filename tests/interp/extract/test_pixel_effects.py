"""Pixels against vectors (METHODS.md 3.8): every intervention by hand, from plain forwards."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import interp
from interp.data.images import blank
from interp.extract.question import ask
from interp.model.vlm import embed
from tests.support import odd_models

FOIL = 47


@pytest.fixture(scope="module")
def samples():
    return interp.load_samples("digits", split="test", limit=8)


@pytest.fixture(scope="module", params=["tiny", "seven_to_one"])
def vlm(request):
    """The embedded model, and a random one."""
    if request.param == "tiny":
        return interp.load_model("tiny")
    processor = odd_models.processor_of(request.param)
    return odd_models.vlm(odd_models.make(request.param, processor), processor)


@pytest.fixture(scope="module")
def found(vlm, samples):
    """The last target's effects, against a picture of the same size."""
    sample = samples[6]
    query = ask(vlm, sample)
    at = {"positions": [int(query.rows[-1])], "targets": [int(query.targets[-1])]}
    other = samples[1].image.resize(sample.image.size)
    ds = interp.extract.pixel_effects(
        vlm, sample, reference=other, gauge="contrast", foils=[FOIL], **at
    )
    return sample, other, query, at, ds


def logit(model, batch, at) -> float:
    with torch.no_grad():
        row = model(**batch).logits[0, at["positions"][0]]
    return float(row[at["targets"][0]] - row[FOIL])


def drawn(vlm, query, image):
    """The query's batch with another image, through the processor."""
    features = vlm.processor.image_processor(images=[image], return_tensors="pt")
    assert (features["image_grid_thw"] == query.batch["image_grid_thw"]).all()
    pixels = features["pixel_values"].to(query.batch["pixel_values"])
    return dict(query.batch) | {"pixel_values": pixels}


def test_painted_cells_are_those_of_the_picture(vlm, found):
    """On a picture of the processor's own size, so that painting it by hand is painting cells."""
    sample, other, query, at, ds = found
    merged = vlm.processor.image_processor.patch_size * vlm.processor.image_processor.merge_size
    assert [side % merged for side in sample.image.size] == [0, 0]
    clean = logit(vlm.model, query.batch, at)
    scale = float(np.abs(ds.total).max())
    for place in (0, 3, int(query.is_visual.sum()) - 1):
        source = int(query.is_visual.nonzero()[place])
        column, row = int(ds.column[source]) * merged, int(ds.row[source]) * merged
        box = (column, row, column + merged, row + merged)
        canvas = sample.image.convert("RGB")
        canvas.paste(other.convert("RGB").crop(box), box)
        lost = clean - logit(vlm.model, drawn(vlm, query, canvas), at)
        mine = float(ds.total.isel(source=source).sel(intervention="pixels").squeeze())
        assert mine == pytest.approx(lost, abs=2e-5 * scale)


def test_swapped_vectors_are_those_behind_the_tower(vlm, found):
    sample, other, query, at, ds = found
    theirs, clean = embed(vlm, other)[0], logit(vlm.model, query.batch, at)
    scale = float(np.abs(ds.total).max())
    source = int(query.is_visual.nonzero()[2])

    def swap(_module, args, kwargs):
        embeddings = kwargs["inputs_embeds"].clone()
        embeddings[0, source] = theirs[2]
        return args, kwargs | {"inputs_embeds": embeddings}

    language = vlm.model.model.language_model
    handle = language.register_forward_pre_hook(swap, with_kwargs=True)
    lost = clean - logit(vlm.model, query.batch, at)
    handle.remove()
    mine = float(ds.total.isel(source=source).sel(intervention="vector").squeeze())
    assert mine == pytest.approx(lost, abs=2e-5 * scale)
    slot = interp.extract.patch_effects(
        vlm, sample, form="slot", reference=theirs, gauge="contrast", foils=[FOIL], **at
    )
    np.testing.assert_allclose(ds.total.sel(intervention="slot"), slot.total, atol=1e-6 * scale)


def test_the_whole_image_is_the_same_before_and_behind_the_tower(vlm, found):
    _, other, query, at, ds = found
    lost = logit(vlm.model, query.batch, at) - logit(vlm.model, drawn(vlm, query, other), at)
    whole = ds.set_total.sel(visual_set="image").squeeze()
    scale = float(np.abs(ds.total).max())
    for name in ("pixels", "vector"):
        assert float(whole.sel(intervention=name)) == pytest.approx(lost, abs=2e-5 * scale)
    # The evidence's neighbours have seen it: painted it goes from them too.
    evidence = ds.set_total.sel(visual_set="evidence").squeeze()
    gap = evidence.sel(intervention="pixels") - evidence.sel(intervention="vector")
    assert abs(float(gap)) > 1e-3 * scale
    visual = query.is_visual.numpy()
    of_set = interp.extract.pixel_effects(
        vlm, found[0], reference=other, sources=["evidence"], gauge="contrast", foils=[FOIL], **at
    )
    assert of_set.sizes["visual_set"] == 1 and np.isfinite(of_set.total.values[..., visual]).all()


def test_ranks_and_borders_by_hand(vlm, found):
    _, _, query, _, ds = found
    visual = query.is_visual.numpy()
    maps = ds.total.values[0][:, visual]
    for k, name in enumerate(ds.intervention.values):
        expected = spearmanr(maps[0], maps[k]).statistic
        assert float(ds.rank_with_pixels.sel(intervention=name)[0]) == pytest.approx(expected)
    rows, columns = ds.row.values[visual], ds.column.values[visual]
    is_border = np.isin(rows, (0, rows.max())) | np.isin(columns, (0, columns.max()))
    share = np.abs(maps[1])[is_border].sum() / np.abs(maps[1]).sum()
    assert float(ds.border_share.sel(intervention="vector")[0]) == pytest.approx(share)
    assert float(ds.border_area) == pytest.approx(is_border.mean())
    assert np.isnan(ds.total.values[..., ~visual]).all()


def test_some_patches_have_what_they_have_among_all(vlm, found):
    sample, other, query, at, ds = found
    rows = query.is_visual.nonzero()[:, 0].tolist()
    some = [rows[5], rows[1], rows[-1], rows[7]]
    few = interp.extract.pixel_effects(
        vlm, sample, reference=other, patches=some, gauge="contrast", foils=[FOIL], **at
    )
    scale = float(np.abs(ds.total).max())
    np.testing.assert_allclose(
        few.total.isel(source=some), ds.total.isel(source=some), atol=2e-5 * scale
    )
    np.testing.assert_allclose(few.set_total, ds.set_total, atol=2e-5 * scale)
    rest = sorted(set(range(few.sizes["source"])) - set(some))
    assert few.total.isel(source=rest).isnull().all()
    for name in ds.intervention.values:
        maps = [ds.total.isel(target=0, source=some).sel(intervention=i) for i in ("pixels", name)]
        expected = spearmanr(*maps).statistic
        assert float(few.rank_with_pixels.sel(intervention=name)[0]) == pytest.approx(expected)
    rows_of, columns_of = ds.row.values[some], ds.column.values[some]
    is_border = np.isin(rows_of, (0, ds.row.max())) | np.isin(columns_of, (0, ds.column.max()))
    assert float(few.border_area) == pytest.approx(is_border.mean())


def test_blank_and_blur_are_pictures_too(vlm, samples):
    sample = samples[0]
    row = {"positions": [int(ask(vlm, sample).rows[-1])]}
    empty = blank(vlm.processor, sample.image.size)
    by_name = interp.extract.pixel_effects(vlm, sample, **row)
    given = interp.extract.pixel_effects(vlm, sample, reference=empty, **row)
    np.testing.assert_allclose(by_name.total, given.total)
    blurred = interp.extract.pixel_effects(vlm, sample, reference="blur", **row)
    assert float(np.abs(blurred.total - by_name.total).max()) > 1e-4


def test_what_cannot_be_painted_is_refused(vlm, samples):
    sample = samples[0]
    with pytest.raises(ValueError, match="expected one image, got 2"):
        two = interp.Sample(image=[sample.image] * 2, question="q", answer="3")
        interp.extract.pixel_effects(vlm, two)
    for patches in ([0], [20, 20], []):
        with pytest.raises(ValueError, match="expected distinct visual rows in"):
            interp.extract.pixel_effects(vlm, sample, patches=patches)
    with pytest.raises(ValueError, match="expected source sets of"):
        interp.extract.pixel_effects(vlm, sample, sources=["nothing"])
    with pytest.raises(ValueError, match=r"expected visual source sets, got \('question',\)"):
        interp.extract.pixel_effects(vlm, sample, sources=["question"])


def test_where_nothing_has_an_effect_there_is_no_border(samples, recwarn):
    """A control whose answer rows read no image: its slots do nothing, its pixels do."""
    blind, sample = interp.load_model("tiny-blind-rows", device="cpu"), samples[6]
    query = ask(blind, sample)
    (place,) = [k for k, (role, _) in enumerate(query.places) if role == "answer"]
    other = samples[1].image.resize(sample.image.size)
    at = {"positions": [int(query.rows[place])], "reference": other}
    ds = interp.extract.pixel_effects(blind, sample, **at).isel(target=0)
    assert (ds["set_total"].sel(intervention="slot") == 0).all()
    assert np.isnan(ds["border_share"].sel(intervention="slot"))
    assert 0 < ds["border_share"].sel(intervention="pixels") <= 1
    assert not [one for one in recwarn if "divide" in str(one.message)]
