"""Maps against slow references, and what they have to sum to (METHODS.md 4)."""

from dataclasses import replace

import numpy as np
import pytest

import interp
from interp.algebra.readout import read_out
from interp.capture.replay import replay
from interp.extract import attention_maps
from interp.extract.prefilled import asked
from interp.maps import grid as maps
from tests.support import odd_models, reference

KINDS = ("direct", "bottleneck", "two_hop", "effect", "edge", "slot")


@pytest.fixture(scope="module")
def samples():
    return interp.load_samples("digits", split="test", limit=10)


def rows_of(ds, role):
    return np.flatnonzero(ds.source_role.values == role).tolist()


@pytest.fixture
def case(odd_model, processor):
    """A random model, a scene with thinking, the answer's maps, and the slow forward."""
    vlm, sample = odd_models.vlm(odd_model, processor), odd_models.sample()
    ds = interp.extract.maps(vlm, sample, kinds=("direct", "bottleneck", "two_hop"), only="answer")
    clean = reference.Clean(odd_model, interp.extract.question.ask(vlm, sample).batch)
    return vlm, sample, ds, clean


def test_bottleneck_and_two_hops_equal_the_slow_reference(case):
    _vlm, _sample, ds, clean = case
    thinking, visual = rows_of(ds, "thinking"), rows_of(ds, "image")
    row, target = int(ds.target_position[0]), int(ds.target_token_id[0])
    g = clean.gauge_row(target, "centered")
    expected = {
        "bottleneck": reference.bottleneck_map(clean, row, g, thinking),
        "two_hop": reference.two_hop_map(clean, row, g, thinking, visual),
    }
    for kind, every in expected.items():
        slow = every.detach().numpy()[visual]
        mine = ds["map"].sel(kind=kind).values[0, visual]
        assert np.abs(mine - slow).max() <= 1e-6 * np.abs(slow).max(), kind
        assert np.abs(slow).max() > 0


def test_the_released_variant_equals_its_slow_reference(case):
    vlm, sample, _ds, clean = case
    ds = interp.extract.maps(vlm, sample, kinds=("bottleneck",), only="answer", variant="release")
    assert ds.attrs["gauge"] == "raw"
    visual = rows_of(ds, "image")
    slow = (
        reference.released_map(
            clean,
            ds.target_position.values.tolist(),
            ds.target_token_id.values.tolist(),
            rows_of(ds, "thinking"),
            visual,
        )
        .detach()
        .numpy()
    )
    places = [ds[name].values[visual] for name in ("view", "row", "column")]
    slow = maps.arranged(slow, *places)
    assert np.abs(maps.holistic(ds).values - slow).max() <= 1e-5 * np.abs(slow).max()
    paper = interp.extract.maps(vlm, sample, kinds=("bottleneck",), only="answer", gauge="raw")
    assert np.abs(maps.holistic(paper).values - slow).max() > 1e-3 * np.abs(slow).max()


def test_two_hops_sum_to_the_attention_and_bias_origins_of_the_thinking(odd_model, processor):
    """METHODS.md 6, oracle 9, over all tokens; the labelled map keeps the visual ones alone."""
    vlm, sample = odd_models.vlm(odd_model, processor), odd_models.sample()
    query = interp.extract.question.ask(vlm, sample)
    where = {"positions": query.rows[-1:].tolist(), "targets": query.targets[-1:].tolist()}
    made = asked(vlm, sample, gauge="centered", foils=None, completion=None, **where)
    played = replay(made.query.model, made.context, made.query.rows)
    readout = read_out(made.query.parts, made.gauge_rows, played.final[0])
    found = attention_maps.through_thinking(made, played, readout, ["two_hop"], "paper")
    scores = found["two_hop"][0][0].detach().numpy()
    ds = interp.extract.origins(vlm, sample, **where)
    thinking = [t for t in rows_of(ds, "thinking") if t < where["positions"][0]]
    origin = ds.direct_by_origin.isel(target=0, source=thinking).sum("source")
    assert abs(scores.sum() - float(origin.sel(origin="attention"))) <= 1e-6 * float(
        np.abs(origin).sum()
    )


def test_kinds_are_what_their_extractions_say(tiny, samples):
    sample = samples[3]
    refs = interp.extract.references(tiny, sample, kinds=["blur"])
    ds = interp.extract.maps(tiny, sample, kinds=KINDS, reference=refs["blur"])
    assert ds["map"].dims == ("kind", "target", "source")
    assert ds.kind.values.tolist() == list(KINDS)
    ledger = interp.extract.ledger(tiny, sample)
    visual = ds.source_role == "image"
    direct = ledger.direct.sum(["layer", "head"]).where(visual, 0)
    np.testing.assert_allclose(ds["map"].sel(kind="direct"), direct, atol=1e-5)
    assert (ds.is_defined.sel(kind="direct")).all()
    grid = maps.one_map(ds, "answer", "direct")
    np.testing.assert_allclose(grid, maps.token_map(ledger, "answer"), atol=1e-5)
    slot = interp.extract.patch_effects(tiny, sample, form="slot", reference=refs["blur"])
    np.testing.assert_allclose(ds["map"].sel(kind="slot"), slot.total.where(visual, 0), atol=1e-5)
    # Before the rows that predict the first two thinking tokens there is none.
    through = ds.is_defined.sel(kind="bottleneck").values.tolist()
    assert through == [False, False, *[True] * (len(through) - 2)]
    assert ds["map"].sel(kind="bottleneck").isel(target=0).isnull().all()
    assert maps.holistic(ds, "bottleneck", "thinking").notnull().all()


def test_the_holistic_map_rectifies_each_target_first(tiny, samples):
    ds = interp.extract.maps(tiny, samples[1], kinds=("bottleneck",))
    visual = (ds.source_role == "image").values
    of_role = (ds.target_role == "thinking").values
    mine = ds["map"].sel(kind="bottleneck").isel(source=visual, target=of_role)
    expected = mine.clip(min=0).sum("target")
    found = maps.holistic(ds, role="thinking")
    np.testing.assert_allclose(found.values.ravel(), expected, atol=1e-9)
    assert float(found.sum()) > float(mine.sum("target").clip(min=0).sum())


def test_long_thinking_comes_in_parts(tiny, samples, monkeypatch):
    expected = interp.extract.maps(tiny, samples[1], kinds=("bottleneck", "two_hop"))
    monkeypatch.setattr(
        "interp.extract.attention_maps.REPLAY_BYTES", 1
    )  # one thinking token at a time
    found = interp.extract.maps(tiny, samples[1], kinds=("bottleneck", "two_hop"))
    np.testing.assert_allclose(found["map"], expected["map"], atol=1e-5)


def test_texts_without_thinking_or_an_end_are_refused(tiny, samples):
    sample = samples[1]
    with pytest.raises(ValueError, match="expected a text with a thinking span"):
        interp.extract.maps(tiny, replace(sample, thinking=None), kinds=("bottleneck",))
    written = tiny.answer(sample.image, sample.question)
    assert written.is_complete
    ids = written.token_ids
    cut = interp.inputs.completions.completion(tiny.processor.tokenizer, list(ids[:-1]))
    assert cut.answer and not cut.is_complete
    with pytest.raises(ValueError, match="ends with its end token, got one cut off after"):
        interp.extract.maps(tiny, sample, completion=cut, kinds=("direct", "bottleneck"))
    direct = interp.extract.maps(tiny, sample, completion=cut, kinds=("direct",))
    assert direct.is_defined.all()
    in_thinking = interp.inputs.completions.completion(tiny.processor.tokenizer, list(ids[:6]))
    with pytest.raises(ValueError, match="expected a completion with an answer"):
        interp.extract.maps(tiny, sample, completion=in_thinking, kinds=("direct",))


def test_bad_questions_are_refused(tiny, samples):
    cases = [
        ({"kinds": ("round",)}, "kinds of"),
        ({"only": "question"}, "targets of the role 'question'"),
        ({"only": [99]}, r"targets in 0\.\.9, got"),
        ({"variant": "mine"}, "variant of"),
        ({"variant": "release", "kinds": ("edge",)}, "for the release"),
        ({"kinds": ("slot",)}, "expected reference="),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            interp.extract.maps(tiny, samples[1], **options)
    ds = interp.extract.maps(tiny, samples[1], kinds=("direct",), only="answer")
    with pytest.raises(ValueError, match=r"interp.extract.maps\(..., kinds=\('edge',\)\) makes it"):
        maps.one_map(ds, kind="edge")
    with pytest.raises(ValueError, match="targets of the role 'thinking'"):
        maps.holistic(ds, "direct", role="thinking")


def test_the_usual_kinds_work_on_any_text():
    """A text without thinking is an ordinary text; one that was cut has no whole thinking."""
    vlm = interp.load_model("tiny")
    sample = interp.load_samples("digits", split="test", limit=1)[0]
    assert interp.extract.maps(vlm, sample)["kind"].values.tolist() == ["direct", "bottleneck"]
    plain = replace(sample, thinking=None, answer="a small green digit")
    for options in ({}, {"completion": "seven"}):
        found = interp.extract.maps(vlm, plain, **options)
        assert found["kind"].values.tolist() == ["direct"]
        assert found.vlm.map().shape == found.vlm.map("answer", "direct").shape
    ids = vlm.answer(sample.image, sample.question).token_ids
    cut = replace(vlm.answer(sample.image, sample.question), token_ids=ids[:-1], is_complete=False)
    assert interp.extract.maps(vlm, sample, completion=cut)["kind"].values.tolist() == ["direct"]
    with pytest.raises(ValueError, match="thinking span"):
        interp.extract.maps(vlm, plain, kinds=("direct", "bottleneck"))
