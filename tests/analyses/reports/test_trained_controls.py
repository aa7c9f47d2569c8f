"""The trained controls: what is kept of their reports, and what a page says of it."""

import json

import pandas as pd
import pytest

import interp
from analyses.reports.direct_vs_indirect import game_words, rule, trained_controls

KEPT = json.loads(trained_controls.KEPT.read_text())


def test_what_is_kept_is_about_the_shipped_models_and_the_rule():
    assert {one["model"] for one in KEPT} == set(trained_controls.CLOSED)
    for one in KEPT:
        assert one["rule_sha256"] == rule.rule_hash()
        assert one["model_hash"] == interp.load_model(one["model"], device="cpu").fingerprint
        for group in game_words.usual(pd.DataFrame(one["paths"])):
            assert group["share_estimate"].sum() == pytest.approx(1, abs=1e-6)


def test_the_blind_rows_read_nothing_and_are_refuted():
    """METHODS 3.6: it must come out so; a rule that said anything else would be no rule."""
    (blind,) = [one for one in KEPT if one["model"] == "tiny-blind-rows"]
    own_row = [
        one for one in blind["paths"] if one["player"] in ("direct write", "rest of the row")
    ]
    assert len(own_row) >= 4
    assert {one[end] for one in own_row for end in ("estimate", "lower", "upper")} == {0}
    for game in ("first", "second"):
        assert trained_controls.rows(rule.rule_hash())[0][game]["decision"] == "refuted"


def test_another_rule_has_no_controls(tmp_path):
    assert trained_controls.rows("0" * 64) == []
    assert trained_controls.rows(rule.rule_hash(), tmp_path / "none.json") == []
    assert "nobody has seen" in trained_controls.statement([])


def control(decision: str, *, above: int) -> dict:
    cells = {"above": above, "below": 8 - above, "all": 8}
    return {
        "model": "M",
        "closed": "its FFNs",
        "expected": "supported",
        "first": {"decision": decision},
        "second": {"decision": decision, "reason": "a wrong image moves the answer"},
        "cells": {"first": cells, "second": cells},
        "wrong": "−1 [−2, −0.5]",
        "right": "8 [7, 9]",
    }


def test_the_statement_says_what_stood_in_the_way():
    said = trained_controls.statement([control("supported", above=8)])
    assert 'it says "supported": the difference lies above 0 in 8 of 8 and 8 of 8 cells' in said
    assert "wrong image" not in said and "nobody" not in said
    said = trained_controls.statement([control("not assessable", above=7)])
    assert 'was expected to say "supported", and it says "not assessable"' in said
    assert "7 of 8" in said and "but: a wrong image moves the answer (a wrong image does −1" in said
    assert said.endswith('So nobody has seen it say "supported" of a direct path.')


def test_a_report_of_another_model_is_no_control(tmp_path):
    (tmp_path / "verdict.json").write_text("{}")
    (tmp_path / "manifest.json").write_text(json.dumps({"provenance": {"model": "tiny"}}))
    with pytest.raises(ValueError, match="expected a report of .*tiny-no-ffn-rows.*, got 'tiny'"):
        trained_controls.found(tmp_path)
