"""The rule of the verdict on runs that are made up: every word of RULE.md by hand."""

import hashlib

import numpy as np
import pytest
import xarray as xr

from analyses.reports.direct_vs_indirect import judging, rule
from interp import stats
from interp.vocabulary import NORMS, PATH_CLASSES, PLAYERS

REFERENCES, GAUGES = ("mean", "other", "twin"), ("centered", "contrast")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(stats, "RESAMPLES", 400)


def made_run(*, te=3.0, direct=0.9, words=0.0, noise=0.3, families=2, each=100, seed=0):
    """A run in which the direct write has a share of every total effect, and the words another."""
    rng, n = np.random.default_rng(seed), families * each
    first = ("sample", "token_class", "sinks", "reference", "gauge", "norm")
    sizes = {"token_class": 2, "sinks": 2, "reference": 3, "gauge": 2, "norm": 2, "partner": 2}

    def drawn(mean, dims):
        shape = [n if dim == "sample" else sizes[dim] for dim in dims]
        return mean + noise * rng.standard_normal(shape)

    total = drawn(te, first)
    second = ("sample", "partner", "gauge", "norm")
    words_total = drawn(te, second)
    rest = (1 - direct - words) / 2
    parts = np.stack([words_total * one for one in (direct, rest, rest, words)], axis=3)
    return xr.Dataset(
        {
            "first_total": (first, total),
            "first_direct": (first, total * direct),
            "first_direct_strict": (first, total * direct),
            "words_total": (second, words_total),
            "words_owen": (("sample", "partner", "gauge", "player", "norm"), parts),
            "words_owen_strict": (("sample", "partner", "gauge", "player", "norm"), parts),
            "parting": (
                ("sample", "partner", "path_class", "norm"),
                np.full((n, 2, 3, 2), np.nan),
            ),
            "has_same_words": (("sample", "partner"), np.ones((n, 2))),
            "has_sinks": ("sample", np.zeros(n, bool)),
            "control_right": ("sample", 10 + rng.standard_normal(n)),
            "control_wrong": ("sample", np.resize([-0.5, -0.5, 0.5, 0.5], n)),
            "family": ("sample", [f"family {k % families}" for k in range(n)]),
        },
        coords={
            "token_class": ["answer", "thinking"],
            "sinks": ["with", "without"],
            "reference": list(REFERENCES),
            "gauge": list(GAUGES),
            "norm": list(NORMS),
            "partner": ["twin", "other-same-question"],
            "player": list(PLAYERS),
            "path_class": list(PATH_CLASSES),
        },
    )


def decisions(run, game, claim="direct", token_class="answer"):
    found = judging.judge(run).judgements
    rows = found[(found.game == game) & (found.claim == claim) & (found.token_class == token_class)]
    return dict(zip(rows.family, rows.decision, strict=True))


@pytest.mark.parametrize("game", ["first", "second"])
@pytest.mark.parametrize(("direct", "expected"), [(0.9, "supported"), (0.1, "refuted")])
def test_a_share_above_or_below_half_decides(game, direct, expected):
    found = decisions(made_run(direct=direct), game)
    assert set(found) == {"family 0", "family 1", rule.OVERALL}
    assert set(found.values()) == {expected}


def test_the_words_have_a_verdict_of_their_own():
    run = made_run(direct=0.1, words=0.8)
    assert set(decisions(run, "second", "words").values()) == {"supported"}
    assert set(decisions(run, "second").values()) == {"refuted"}


def test_one_cell_that_disagrees_is_named():
    run = made_run()
    at = {"reference": "other", "gauge": "contrast", "norm": "frozen", "token_class": "answer"}
    run["first_direct"].loc[at] = 0.1 * run["first_total"].loc[at]
    assert set(decisions(run, "first").values()) == {"not shown"}
    judged = judging.judge(run).judgements
    row = judged.query("game == 'first' and token_class == 'answer' and family == 'over families'")
    assert row.reason.item() == "Δ is above 0 in 11 of 12 cells, not in: other, contrast, frozen"
    assert row.strict_decision.item() == "supported"


@pytest.mark.parametrize("game", ["first", pytest.param("second", marks=pytest.mark.long)])
def test_a_failed_gate_is_not_assessable_and_a_bounded_one_no_effect(game):
    assert set(decisions(made_run(te=0.4, noise=0.01), game).values()) == {"no effect"}
    low = made_run(te=0.4, noise=2.0)  # |TE| is large, its mean is not
    assert set(decisions(low, game).values()) == {"not assessable"}
    negative = made_run(te=3.0)
    negative["first_total"][:15], negative["words_total"][:15] = -1.0, -1.0  # of 200, 7.5 %
    assert "not assessable" not in decisions(negative, game).values()
    negative["first_total"][:30], negative["words_total"][:30] = -1.0, -1.0
    assert set(decisions(negative, game).values()) == {"not assessable"}
    small = made_run(te=3.0)
    small["first_total"][:60], small["words_total"][:60] = -0.4, -0.4  # rounding is no sign
    assert "not assessable" not in decisions(small, game).values()
    counted = judging.judge(small).gates.query("game == @game and family == 'family 0'")
    assert counted["small"].to_numpy() == pytest.approx(0.3)  # 30 of its 100, and counted beside


def test_a_reference_that_fails_is_not_left_out():
    run = made_run()
    run["first_total"].loc[{"reference": "twin"}] = 0.0
    found = judging.judge(run)
    assert set(decisions(run, "first").values()) == {"not assessable"}
    gates = found.gates.query("game == 'first' and token_class == 'answer'")
    assert set(gates.by[~gates.passes]) == {"twin"}


def test_too_few_images_are_counted():
    run = made_run(each=101)
    run["first_total"].loc[{"reference": "twin", "sample": slice(None, None, 2)}] = np.nan
    found = decisions(run, "first")
    assert found["family 0"].startswith("too few images (0)")  # every second image
    assert found["family 1"] == "supported" == found[rule.OVERALL]
    row = judging.judge(run).judgements.query("game == 'first' and family == 'over families'")
    assert set(row.families) == {"family 1"}
    few = decisions(made_run(each=99), "second")
    assert few == {
        "family 0": "too few images (99)",
        "family 1": "too few images (99)",
        rule.OVERALL: "too few images (0)",  # no family is complete
    }


def test_the_first_hundred_usable_images_of_a_family_are_judged():
    run = made_run(each=130)
    run["first_total"][260 - 60 :] = -50.0  # the last thirty of each family
    assert set(decisions(run, "first").values()) == {"supported"}
    gone = run.copy(deep=True)
    gone["first_total"].loc[{"sample": slice(0, 40), "reference": "twin"}] = np.nan
    assert "supported" not in decisions(gone, "first").values()  # and those are needed then


def test_over_families_is_their_unweighted_mean():
    run = made_run(families=2, each=100)
    extra = run.isel(sample=np.flatnonzero(run["family"].values == "family 0"))
    run = xr.concat([run, extra, extra], dim="sample", data_vars="minimal")  # three of one kind
    in_first = run["family"].values == "family 0"
    run["first_total"][in_first] *= 10
    run["first_direct"][in_first] *= 10
    cells = judging.judge(run).cells.query("game == 'first' and token_class == 'answer'")
    by_family = cells.groupby("family").te.mean()
    mean = by_family[["family 0", "family 1"]].mean()
    assert by_family[rule.OVERALL] == pytest.approx(mean)


def test_the_choice_of_words_is_credited_on():
    """ψ_1 = φ_1 + φ_4 σ_1 with σ_1 a ratio of sums over the images whose texts part, by hand."""
    run = made_run(direct=0.1, words=0.6)
    sizes = np.random.default_rng(4).uniform(1, 9, (100, 1, 1, 2))  # by image and norm
    first = np.array([0.9, 0.3]) * np.where(sizes > 5, 1, 0.2)
    run["parting"][1::2] = np.concatenate([sizes * first, sizes * (1 - first), 0 * sizes], axis=2)
    run["parting"][1::20] = np.nan  # the same words: φ_4 is not credited on
    at_words = {"player": "words", "sample": run["family"].values == "family 0"}
    run["words_owen"].loc[at_words] = 0.0  # family 0: those of even number, whose texts are one
    cells = judging.judge(run).cells
    psi = cells[(cells.claim == "direct, with the choice of words") & (cells.family == "family 1")]
    own = run.isel(sample=run["family"].values == "family 1")
    for row in psi.itertuples():
        cell = own.sel(partner=row.by, gauge=row.gauge, norm=row.norm)
        phi_1, phi_4 = (
            cell["words_owen"].sel(player=name).values.mean() for name in (PLAYERS[0], "words")
        )
        parted = own["parting"].sel(norm=row.norm, partner=row.by).values
        sigma = np.nansum(parted[:, 0]) / np.nansum(parted)
        credited = cell["words_owen"].sel(player="words").values * ~np.isnan(parted[:, 0])
        assert row.part == pytest.approx(phi_1 + sigma * credited.mean())
        assert phi_4 != credited.mean()


def test_a_ratio_of_means_has_the_interval_of_a_plain_bootstrap():
    rng = np.random.default_rng(1)
    whole = xr.DataArray(5 + rng.standard_normal(80), dims="sample")
    part = 0.5 * whole + 0.1 * rng.standard_normal(80)
    strata = xr.DataArray(np.zeros(80), dims="sample")
    draws = stats.drawn_means({"part": part, "whole": whole}, strata)
    mine = stats.interval_of((draws["part"] / draws["whole"]).mean("stratum"))
    scipys = stats.share_interval(part, whole)
    for name, tolerance in (("estimate", 1e-12), ("lower", 2e-3), ("upper", 2e-3)):
        assert float(mine[name]) == pytest.approx(float(scipys[name]), abs=tolerance)


def test_the_rules_hash_is_that_of_its_bytes():
    text = rule.RULE.read_bytes()
    assert rule.rule_hash() == hashlib.sha256(text).hexdigest()
    assert str(rule.SCENE_SEED) in text.decode()
    for number in (str(rule.LEAST_IMAGES), "10 %", "0.5 logits"):
        assert number in text.decode()


def test_a_wrong_image_that_speaks_takes_every_verdict():
    run = made_run()
    rng = np.random.default_rng(2)
    run["control_right"] = ("sample", 10 + rng.standard_normal(200))
    for mean, spread, holds in ((0, 1, True), (2, 1, False), (0, 40, False)):
        run["control_wrong"] = ("sample", mean + spread * rng.standard_normal(200))
        run["control_wrong"] -= run["control_wrong"].mean() - mean
        found = judging.judge(run)
        over = found.control.set_index("family").loc[rule.OVERALL]
        assert bool(over.holds) == holds
        assert over.wrong_estimate == pytest.approx(mean)
        decided = set(found.judgements.query("game == 'first' and claim == 'direct'").decision)
        assert decided == ({"supported"} if holds else {"not assessable"})
    run["control_wrong"][20:] = np.nan
    found = judging.judge(run)
    assert set(found.control.holds) == {None}
    assert set(found.judgements.decision) == {"not assessable"}


def test_a_control_that_cannot_be_played_takes_every_verdict():
    """Two answers alone have no third one that neither image shows."""
    run = made_run()
    run["control_wrong"].loc[{"sample": (run["family"] == "family 0").values}] = np.nan
    found = judging.judge(run)
    assert set(found.control.family) == {"family 1"}
    assert set(found.judgements.decision) == {"not assessable"}
    run["control_wrong"][:] = np.nan
    found = judging.judge(run)
    assert len(found.control) == 0 and set(found.judgements.decision) == {"not assessable"}
    assert "the control needs 100 images" in found.judgements.reason.iloc[0]


def test_data_without_twins_are_judged_without_them():
    run = made_run()
    run["first_total"].loc[{"reference": "twin"}] = np.nan
    run["words_total"].loc[{"partner": "twin"}] = np.nan
    for name in ("words_owen", "words_owen_strict"):
        run[name].loc[{"partner": "twin"}] = np.nan
    assert decisions(run, "first")[rule.OVERALL].startswith("too few images")
    bare = run.assign_attrs(has_twins=False)
    for game in ("first", "second"):
        assert set(decisions(bare, game).values()) == {"supported"}
    assert set(judging.paths(bare).partner) == {"other-same-question"}


def test_the_control_is_over_the_families_that_the_first_game_judges():
    run = made_run()
    in_first = (run["family"] == "family 0").values
    run["first_total"].loc[{"reference": "twin", "sample": in_first}] = np.nan
    rng = np.random.default_rng(3)
    run["control_right"] = ("sample", 10 + rng.standard_normal(200))
    wrong = rng.standard_normal(200)
    wrong[~in_first] -= wrong[~in_first].mean()
    run["control_wrong"] = ("sample", wrong + 5 * in_first)
    control = judging.judge(run).control.set_index("family")
    assert not control.loc["family 0", "holds"]
    assert control.loc[rule.OVERALL, "holds"]


def test_kinds_whose_thinking_parts_have_no_cells_of_the_twin():
    """The twin is defined at the one thinking token at which the texts part: that is no cell."""
    run = made_run()
    in_first = (run["family"] == "family 0").values
    answers = {"reference": "twin", "token_class": "answer", "sample": in_first}
    run["first_total"].loc[answers] = np.nan
    for token_class in ("answer", "thinking"):
        found = decisions(run, "first", token_class=token_class)
        assert found["family 0"] == "too few images (0)" and found["family 1"] == "supported"


def test_where_no_kind_is_complete_nothing_stands_over_them():
    from analyses.reports.direct_vs_indirect import game_figures, game_words

    run = made_run(each=20)
    found, paths = judging.judge(run), judging.paths(run)
    over = found.cells[found.cells.family == rule.OVERALL]
    assert over[["te", "delta"]].isna().all(axis=None) and (over.n == 0).all()
    assert game_figures.judged_cells(found) is None
    assert game_words.headlines(paths, found) == []
    assert game_figures.draw(paths, found)["four_paths"] is None


def test_headlines_stand_on_a_verdict_alone_and_have_their_intervals():
    from analyses.reports.direct_vs_indirect import game_words

    run = made_run(direct=0.2, words=0.4)
    sentences = game_words.headlines(judging.paths(run), judging.judge(run))
    assert len(sentences) == 2 and "(twin)" in sentences[0] and "other-same" in sentences[1]
    assert "loses 3.0 [" in sentences[0] and "40 % [" in sentences[0]
    run["control_wrong"] += 5
    assert game_words.headlines(judging.paths(run), judging.judge(run)) == []


def test_where_the_first_game_judges_none_the_control_is_over_all():
    run = made_run()
    run["first_total"].loc[{"reference": "twin", "token_class": "answer"}] = np.nan
    assert set(decisions(run, "second").values()) == {"supported"}
    assert set(decisions(run, "first").values()) == {"too few images (0)"}
