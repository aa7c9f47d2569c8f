"""The run of the games holds what the public calls give, and one game's fault is that game's."""

from dataclasses import replace

import numpy as np
import pytest

import interp
from analyses.options import DirectVsIndirectReport
from analyses.reports.direct_vs_indirect import games
from analyses.reports.direct_vs_indirect.partners import Partners
from analyses.run.recipe import Budget
from interp import extract

BUDGET = Budget(16, 2**31)


@pytest.fixture(scope="module")
def played(tiny):
    """One scene of each family, measured."""
    options = replace(DirectVsIndirectReport(), limit=5, no_images=True)
    samples, pool = games.scenes(options)
    assert len({one.family for one in samples}) == len(samples) == 5
    recipe = games.Games(tiny, pool, options, certificate={})
    return recipe, samples, recipe.measure(samples, BUDGET)


@pytest.mark.long
def test_the_second_games_numbers_are_those_of_the_public_call(tiny, played):
    recipe, samples, shard = played
    for sample in samples:
        for kind, partner in recipe.partners.of(sample).items():
            one = shard.dataset.sel(sample=sample.id, partner=kind)
            if partner is None:
                assert np.isnan(one["words_total"]).all()
                assert shard.statuses[sample.id]["left_out"][kind] == "no such partner"
                continue
            alone = extract.words(tiny, sample, partner).sel(drawn="greedy")
            for name in games.BRIEF:
                values = alone[name].transpose(*one[name].dims).sel(gauge=one["gauge"])
                np.testing.assert_allclose(one[name], values, atol=1e-4, err_msg=name)
            assert bool(one["has_same_words"]) == bool(alone["has_same_words"])
            np.testing.assert_allclose(one["parting"], alone["parting"], atol=1e-4)


def test_the_first_games_numbers_are_those_of_the_public_call(tiny, played):
    recipe, samples, shard = played
    sample = next(one for one in samples if one.family == "left_of")
    text = tiny.answer(sample.image, sample.question)
    references = extract.references(
        tiny, sample, pool=recipe.pool, completion=text, seed=recipe.options.seed
    )
    ds = extract.shapley(tiny, sample, references=references, completion=text, sources=["image"])
    answer = ds.isel(target=(ds["target_role"] == "answer").values).squeeze("source_set")
    mine = shard.dataset.sel(sample=sample.id, token_class="answer", sinks="with", gauge="centered")
    for name, variable in (("first_total", "total"), ("first_direct", "shapley")):
        values = answer[variable].mean("target")
        values = values.sel(path_class="direct write") if "path_class" in values.dims else values
        expected = values.transpose(*mine[name].dims)
        np.testing.assert_allclose(mine[name], expected, atol=1e-4)


def test_a_fault_of_one_game_costs_that_game(played, monkeypatch):
    recipe, samples, shard = played
    bad, plain = samples[1].id, games.played_numbers

    def faulty(all_games, max_memory):
        all_games = list(all_games)
        if any(one.sample.id == bad for one in all_games):
            raise ValueError("expected finite activations, got NaN")
        return plain(all_games, max_memory)

    monkeypatch.setattr(games, "played_numbers", faulty)
    again = recipe.measure(samples, BUDGET)
    one = again.dataset.sel(sample=bad)
    assert np.isnan(one["words_total"]).all() and np.isfinite(one["first_total"]).any()
    assert set(again.statuses[bad]["left_out"].values()) == {
        "expected finite activations, got NaN"
    } | ({"no such partner"} if None in recipe.partners.of(samples[1]).values() else set())
    others = [sample.id for sample in samples if sample.id != bad]
    np.testing.assert_allclose(
        again.dataset["words_total"].sel(sample=others),
        shard.dataset["words_total"].sel(sample=others),
        atol=1e-4,
    )


def test_partners_ask_the_same_and_answer_otherwise():
    pool = interp.load_samples("digits", split="test", limit=300, seed=7)
    partners, n_found = Partners(pool, 0), 0
    for sample in pool[:60]:
        other = partners.of(sample)["other-same-question"]
        if other is not None:
            assert other.question == sample.question and other.answer != sample.answer
            assert other.id == Partners(pool, 0).of(sample)["other-same-question"].id
            n_found += 1
    assert n_found > 30
