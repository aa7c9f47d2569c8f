"""The report on maps: its numbers by hand, its redrawing, and what it refuses."""

import html
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import interp
from analyses import faithfulness as script
from analyses.reports.faithfulness import words
from interp import attribution
from interp.measures import normalised
from tests.support import commands

METHODS = [
    "random",
    "CAM",
    "occlusion",
    "direct (Eq. 1)",
    "first order, integrated",
    "exact edge",
    "exact slot",
]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("maps") / "out"
    asked = ("--limit", 3, "--out", folder, "--no-witness", "--shard-size", 4)
    done = commands.run(script, *asked, "--methods", *METHODS)
    assert "3 samples ok, 0 skipped" in done.stdout
    return folder


def table(out, name):
    return pd.read_csv(out / f"tables/{name}.csv")


def test_table_1_holds_the_stored_runs_numbers_by_hand(out):
    found = table(out, "table1_answer").set_index("method")
    assert list(found.index) == METHODS
    assert found.columns[0] == "deletion 5 %" and len(found.columns) == 6
    page = (out / "index.html").read_text()
    assert all(cell in page for cell in found.loc["CAM"])
    part, whole = normalised(interp.open_run(out / "run"))
    at = {"explainer": "CAM", "change": "deletion", "share": 0.3, "text": "answer"}
    by_hand = float(part.sel(at).sum() / whole.sel(at).sum())
    assert found.loc["CAM", "deletion 30 %"].startswith(f"{by_hand:.1f} [")
    counts = json.loads((out / "manifest.json").read_text())["counts"]
    assert counts == {"ok": 3, "skipped": 0, "failed": 0}


def test_the_headline_names_the_first_map_and_the_random_one(out):
    rows = table(out, "ranking").query("text == 'answer' and change == 'deletion'")
    assert rows["estimate"].is_monotonic_increasing and set(rows["method"]) == set(METHODS)
    said = words.headline(SimpleNamespace(ranking=table(out, "ranking")))
    assert f"First of {len(METHODS)} maps by that number: {rows['method'].iloc[0]};" in said
    assert said in html.unescape((out / "index.html").read_text())
    worse = rows.assign(estimate=range(len(rows)), lower=-1.0, upper=9.0)
    worse = worse.sort_values("method", key=lambda names: names != "random", kind="stable")
    said = words.headline(SimpleNamespace(ranking=worse))
    assert f"First of {len(METHODS)} maps by that number: random;" in said
    assert said.count("by random") == 1


def test_pairs_agreement_and_costs(out):
    pairs = table(out, "direct_suffices")
    assert set(pairs["second"]) == {*METHODS[4:], "occlusion"}
    assert "not measured" in words.verb({"lower": np.nan, "upper": np.nan})
    assert (pairs["lower"] <= pairs["estimate"]).all()
    assert (pairs["estimate"] <= pairs["upper"]).all()
    own = table(out, "agreement").query("method == 'exact edge' and exact == 'edge'")
    assert own["estimate"].item() == pytest.approx(1)
    costs = table(out, "costs").set_index("method")
    assert costs.loc["occlusion", "ratio"] > 1
    assert costs.loc["occlusion", "memory"] > costs.loc["CAM", "memory"] > 0


def test_redrawing_gives_the_same_page(out, tmp_path):
    commands.run(script, "--from-run", out / "run", "--out", tmp_path)
    assert (tmp_path / "index.html").read_text() == (out / "index.html").read_text()


def test_a_map_without_a_partner_has_a_report_too(tmp_path):
    commands.run(script, "--limit", 1, "--no-witness", "--methods", "CAM", "--out", tmp_path)
    assert table(tmp_path, "direct_suffices").empty
    run = interp.open_run(tmp_path / "run")
    assert run["reference_answer"].attrs["long_name"] == "Reference answer"
    assert all("units" in variable.attrs for variable in run.data_vars.values())


def test_the_help_names_every_method():
    listed = " ".join(script.__doc__.split("have a space):")[-1].split())
    first, second = listed.removesuffix(".").split("; and maps of contributions and effects: ")
    names = [*first.split(", "), *second.split(", ")]
    assert set(attribution.METHODS.named(names)) == set(attribution.METHODS)
    assert len(names) == len(attribution.METHODS)


def test_an_unknown_method_is_refused(tmp_path):
    done = commands.run(script, "--methods", "magic", "--out", tmp_path, code=2)
    assert "expected methods of" in done.stderr
