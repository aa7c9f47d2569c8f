"""Files of a report: a table that no spreadsheet runs, a page whose sections are folded."""

import re

import pandas as pd
import pytest

from analyses.reports import writing
from analyses.reports.folding import END, folded
from interp.store.spreadsheets import inert

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
    pd.testing.assert_frame_equal(inert(table), table)


def test_counts_of_images_are_whole_numbers(tmp_path):
    """Also where a row has none, which makes a column floating."""
    table = pd.DataFrame({"n": [100.0, float("nan")], "estimate": [100.0, 0.5]})
    writing.save_tables({"a": table}, tmp_path)
    assert (tmp_path / "a.csv").read_text() == "n,estimate\n100,100.0\n,0.5\n"
    assert "100 &" in (tmp_path / "a.tex").read_text()


def test_a_table_for_print_has_a_column_for_a_number_with_its_interval(tmp_path):
    table = pd.DataFrame(
        {
            "token_class": ["answer", "thinking"],
            "estimate": [4.1234, -0.0312],
            "lower": [3.74, -0.05],
            "upper": [4.5, 0.01],
            "delta": [1.0, 2.0],
            "delta_lower": [0.5, float("nan")],
            "delta_upper": [1.5, float("nan")],
            "n": [7, 8],
        }
    )
    printed = writing.with_intervals(table)
    assert list(printed) == ["token class", "estimate [95 %]", "delta [95 %]", "n"]
    assert printed["estimate [95 %]"].tolist() == ["4.12 [3.74, 4.50]", "−0.031 [−0.050, 0.010]"]
    assert printed["delta [95 %]"].tolist() == ["1.00 [0.50, 1.50]", "2.00 [–]"]
    writing.save_tables({"few": table, "many": pd.concat([table] * 51)}, tmp_path)
    assert (tmp_path / "many.csv").is_file() and not (tmp_path / "many.tex").exists()
    latex = (tmp_path / "few.tex").read_text()
    assert latex.startswith("% \\usepackage{booktabs}") and "$-$0.031" in latex
    assert all(ord(char) < 128 for char in latex), "pdflatex stops at other signs"


def test_sections_are_folded_behind_contents_that_lead_to_each():
    head, first, last = "<h1>t</h1><p>first screen</p>", "<p>a</p>\n", "<ul><li>b</li></ul>"
    page = f"{head}<h2>One &amp; two</h2>{first}<h2>Three</h2>{last}{END}</body>"
    found = folded(page)
    before, nav, *parts = re.split(r"(?=<nav|<details)", found)
    assert before == head  # which stays in sight
    links = re.findall(r'<a href="#([^"]+)">(.*?)</a>', nav)
    assert [title for _, title in links] == ["One &amp; two", "Three"]
    for (name, title), part, content in zip(links, parts, (first, last), strict=True):
        assert f"<summary><h2>{title}</h2></summary>" in part
        assert f'<div id="{name}">{content}</div></details>' in part
    assert found.endswith("</body>") and END not in found
    twice = folded(f"{head}<h2>Same</h2>{first}<h2>Same</h2>{last}{END}")  # neither is lost
    assert first in twice and last in twice and len(set(re.findall('id="([^"]+)"', twice))) == 2
    assert folded("<p>without sections</p>") == "<p>without sections</p>"
