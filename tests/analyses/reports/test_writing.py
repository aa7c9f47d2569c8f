"""Files of a report: a table that no spreadsheet runs."""

import pandas as pd
import pytest

from analyses.reports import writing

FORMULAS = ("=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "=", "-", "- a cup")
HARMLESS = ("a", "1 = 1", "-0.35", "+12", "-0.35 [-0.4, 0.1]", "1,234", "−3", "", "'=1")


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_becomes_text(text, tmp_path):
    writing.save_tables({"a": pd.DataFrame({"token": [text, "x"], "value": [-1.5, 2]})}, tmp_path)
    table = pd.read_csv(tmp_path / "a.csv")
    spelled = text.replace("\r", "\\r")
    assert table["token"].tolist() == [f"'{spelled}", "x"]
    assert table["value"].tolist() == [-1.5, 2]


@pytest.mark.parametrize("text", HARMLESS)
def test_numbers_and_other_texts_stay_as_they_are(text):
    table = pd.DataFrame({"token": [text], "value": [-1], "missing": [None]})
    pd.testing.assert_frame_equal(writing.inert(table), table)
