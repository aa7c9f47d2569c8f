"""References for visual tokens, targets where a twin is one, and sinks (METHODS.md 3.2, 3.6)."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import interp
from interp.capture.prefill import prefill
from interp.extract.question import ask
from interp.extract.references import Pool
from interp.model.vlm import embed
from tests.support import odd_models
from tests.support.odd_models import batch


@pytest.fixture(scope="module")
def vlm():
    return interp.load_model("tiny")


@pytest.fixture(scope="module")
def samples():
    return interp.load_samples("digits", split="test", limit=25, seed=4)


def of_family(samples, family):
    return next(s for s in samples if s.family == family)


def test_embeddings_are_what_the_language_model_gets(vlm, samples):
    query = ask(vlm, samples[0])
    context = prefill(vlm.model, query.batch, query.rows)
    image = torch.from_numpy(query.tokens.image >= 0)
    got, grid = embed(vlm, samples[0].image)
    torch.testing.assert_close(got, context.content[image])
    assert len(got) == grid[0] * grid[1]


def test_each_kind_is_what_it_says(vlm, samples):
    sample = of_family(samples, "digit_by_color")
    kinds = ("mean", "other", "twin", "blur")
    found = interp.extract.references(vlm, sample, pool=samples, kinds=kinds)
    own, _ = embed(vlm, sample.image)
    assert list(found) == list(kinds)
    every = torch.cat([embed(vlm, s.image)[0] for s in samples])
    torch.testing.assert_close(found["mean"].content[0], every.mean(0), atol=1e-5, rtol=0)
    for one in found.values():
        assert one.content.shape == own.shape
        assert not torch.allclose(one.content, own, atol=1e-2)
    torch.testing.assert_close(found["twin"].content, embed(vlm, sample.twin.image)[0])


def test_other_has_another_answer_and_this_grid(vlm, samples):
    pool = Pool(vlm, samples)
    for sample in samples[:8]:
        _, grid = embed(vlm, sample.image)
        other = pool.other(sample, sample.answer, grid, seed=0)
        assert other.answer != sample.answer and other.image.size == sample.image.size
        assert pool.other(sample, sample.answer, grid, seed=0) is other
        assert pool.other(sample, other.answer, grid, seed=0).answer != other.answer
        family = [
            s for s in samples if s.family == sample.family and s.image.size == other.image.size
        ]
        if any(s.answer != sample.answer for s in family):
            assert other.family == sample.family
    grid = embed(vlm, samples[0].image)[1]
    picks = {pool.other(samples[0], samples[0].answer, grid, k).id for k in range(9)}
    assert len(picks) > 1


def test_foils_of_the_contrast_gauge_are_the_twins_answers(vlm, samples):
    """Where the thinking before them is the same; otherwise places are not aligned."""
    from analyses.reports.direct_vs_indirect.sample import contrast_foils

    tokenizer = vlm.processor.tokenizer
    for family, has_foil in (("count", False), ("left_of", True)):
        sample = of_family(samples, family)
        assert (sample.thinking == sample.twin.thinking) == has_foil
        query = ask(vlm, sample)
        foils = contrast_foils(vlm, sample, query)
        for foil, (role, _), token in zip(foils, query.places, query.target_text, strict=True):
            if role == "thinking" or not has_foil:
                assert foil is None
            else:
                assert tokenizer.decode([foil]) == sample.twin.answer != token
        assert contrast_foils(vlm, replace(sample, twin=None), query) == [None] * len(foils)


def test_an_other_of_another_grid_is_resized(vlm, samples):
    sample = samples[0]
    size = sample.image.size
    odd = [s for s in samples if s.image.size != size and s.answer != sample.answer][:1]
    found = interp.extract.references(vlm, sample, pool=odd, kinds=["other"])
    expected, _ = embed(vlm, odd[0].image.resize(size))
    torch.testing.assert_close(found["other"].content, expected)


def test_a_twin_is_a_reference_only_where_its_text_differs(vlm, samples):
    for family in ("digit_by_color", "count"):
        sample = of_family(samples, family)
        found = interp.extract.references(vlm, sample, pool=samples)
        fx = interp.extract.node_effects(vlm, sample, references=found, sources=["image"])
        tokens = fx.target_token.values.tolist()
        is_defined = fx.is_defined.sel(source_set="image", reference="twin").values
        twin = interp.extract.ledger(vlm, sample.twin, detail="summary")
        for role in ("thinking", "answer"):
            mine = np.flatnonzero(fx.target_role.values == role)
            theirs = twin.target_token.values[twin.target_role.values == role].tolist()
            is_aligned = role == "thinking" or sample.thinking == sample.twin.thinking
            for place, k in enumerate(mine):
                other = theirs[place] if place < len(theirs) else None
                assert is_defined[k] == (is_aligned and other is not None and other != tokens[k])
                is_aligned = is_aligned and (role == "answer" or other == tokens[k])
        assert fx.is_defined.sel(reference="mean").all()
        answer = is_defined[fx.target_role.values == "answer"]
        assert answer.any() == (family != "count") and is_defined.sum() == 1
        nothing = fx.effect.sel(reference="twin").where(~fx.is_defined.sel(reference="twin"), 0)
        assert float(np.abs(nothing).max()) == 0


def test_runner_up_foils_are_the_likeliest_other_tokens(vlm, samples):
    asked = {"gauge": "contrast", "foils": "runner-up"}
    ds = interp.extract.ledger(vlm, samples[0], **asked)
    query = ask(vlm, samples[0])
    with torch.no_grad():
        logits = vlm.model(**query.batch).logits[0, query.rows]
    for k, target in enumerate(query.targets.tolist()):
        others = torch.cat([logits[k, :target], logits[k, target + 1 :]])
        expected = float(logits[k, target] - others.max())
        assert float(ds.logit[k]) == pytest.approx(expected, abs=1e-4)
    foils = [None] * len(query.targets)
    same = interp.extract.ledger(vlm, samples[0], gauge="contrast", foils=foils)
    np.testing.assert_array_equal(same.logit, ds.logit)


def test_what_makes_no_reference_is_refused(vlm, samples):
    sample = samples[0]
    make = interp.extract.references
    with pytest.raises(ValueError, match="references of .*, got .'noise'"):
        make(vlm, sample, kinds=["noise"])
    with pytest.raises(ValueError, match="pool=samples"):
        make(vlm, sample, kinds=["mean"])
    with pytest.raises(ValueError, match="another answer in the pool of 1"):
        make(vlm, sample, pool=[sample], kinds=["other"])


def test_sinks_are_flagged_and_can_be_left_out(processor, monkeypatch):
    monkeypatch.setitem(
        odd_models.SHAPES, "wide", ("qwen2_5_vl", 4, 4, 2, 128, [16, 24, 24], False)
    )
    model, inputs = odd_models.make("wide", processor), batch(processor)
    image = (inputs["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0].tolist()
    asked = {"positions": [55], "detail": "tokens"}
    before = interp.extract.ledger(model, inputs, **asked)
    assert not before.is_sink.any() and float(before.peak.max()) < 20
    sink = image[3]

    def grow(_module, _args, hidden):
        hidden = hidden.clone()
        if hidden.shape[1] > sink:  # not in a replay
            hidden[0, sink, 7] = 1e4
        return hidden

    handle = model.model.language_model.layers[0].register_forward_hook(grow)
    ds = interp.extract.ledger(model, inputs, **asked)
    handle.remove()
    assert ds.source.values[ds.is_sink.values].tolist() == [sink]
    assert 20 < float(ds.peak[sink]) <= 512**0.5 + 1e-3


def test_a_set_without_its_sinks_is_a_set_of_its_own(vlm, samples, monkeypatch):
    """The threshold lowered until the scene has sinks."""
    ledger = interp.extract.ledger(vlm, samples[0], detail="tokens")
    image = ledger.peak.values[ledger.source_role.values == "image"]
    threshold = float(np.sort(image)[-3:-1].mean())
    monkeypatch.setattr("interp.capture.prefill.SINK_PEAK", threshold)
    fx = interp.extract.effects(vlm, samples[0])
    assert "image-nosink" in fx.source_set.values
    sinks = np.flatnonzero((ledger.peak.values > threshold) & (ledger.source_role == "image"))
    rest = np.flatnonzero((ledger.peak.values <= threshold) & (ledger.source_role == "image"))
    assert len(sinks) == 2
    query = ask(vlm, samples[0])
    by_rows = interp.extract.effects(
        vlm.model, query.batch, positions=query.rows.tolist(), sources={"rest": rest.tolist()}
    )
    np.testing.assert_allclose(
        fx.total.sel(source_set="image-nosink"), by_rows.total.sel(source_set="rest"), atol=1e-5
    )
