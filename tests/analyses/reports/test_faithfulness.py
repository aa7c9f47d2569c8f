"""The report on maps: its numbers by hand, its redrawing, and what it refuses."""

import json

import numpy as np
import pandas as pd
import pytest

import interp
from analyses import faithfulness as script
from analyses.reports.faithfulness import words
from interp.measures import normalised
from tests.support import commands


def test_the_report_and_its_redrawing(tmp_path):
    methods = [
        "random",
        "CAM",
        "occlusion",
        "direct (Eq. 1)",
        "first order, integrated",
        "exact edge",
        "exact slot",
    ]
    asked = ("--limit", 6, "--out", tmp_path / "a", "--no-witness", "--shard-size", 4)
    done = commands.run(script, *asked, "--methods", *methods)
    assert "6 samples ok, 0 skipped" in done.stdout
    page = (tmp_path / "a/index.html").read_text()
    table = pd.read_csv(tmp_path / "a/tables/table1_answer.csv").set_index("method")
    assert list(table.index) == methods
    assert table.columns[0] == "deletion 5 %" and len(table.columns) == 6
    assert all(cell in page for cell in table.loc["CAM"])
    # The table's numbers out of the stored run, by hand.
    stored = interp.open_run(tmp_path / "a/run")
    part, whole = normalised(stored)
    at = {"explainer": "CAM", "change": "deletion", "share": 0.3, "text": "answer"}
    by_hand = float(part.sel(at).sum() / whole.sel(at).sum())
    assert table.loc["CAM", "deletion 30 %"].startswith(f"{by_hand:.1f} [")
    pairs = pd.read_csv(tmp_path / "a/tables/direct_suffices.csv")
    assert set(pairs["second"]) == {
        "first order, integrated",
        "exact edge",
        "exact slot",
        "occlusion",
    }
    assert "not measured" in words.verb({"lower": np.nan, "upper": np.nan})
    assert (pairs["lower"] <= pairs["estimate"]).all()
    assert (pairs["estimate"] <= pairs["upper"]).all()
    own = pd.read_csv(tmp_path / "a/tables/agreement.csv").query("method == 'exact edge'")
    assert own.query("exact == 'edge'")["estimate"].item() == pytest.approx(1)
    costs = pd.read_csv(tmp_path / "a/tables/costs.csv").set_index("method")
    assert costs.loc["occlusion", "ratio"] > 1
    assert costs.loc["occlusion", "memory"] > costs.loc["CAM", "memory"] > 0
    assert json.loads((tmp_path / "a/manifest.json").read_text())["counts"] == {
        "ok": 6,
        "skipped": 0,
        "failed": 0,
    }
    commands.run(script, "--from-run", tmp_path / "a/run", "--out", tmp_path / "b")
    assert (tmp_path / "b/index.html").read_text() == page
    # A map without a partner to compare it with has a report too.
    alone = ("--limit", 1, "--no-witness", "--methods", "CAM", "--out", tmp_path / "d")
    commands.run(script, *alone)
    assert pd.read_csv(tmp_path / "d/tables/direct_suffices.csv").empty
    run = interp.open_run(tmp_path / "d/run")
    assert run["reference_answer"].attrs["long_name"] == "Reference answer"
    assert all("units" in variable.attrs for variable in run.data_vars.values())
    wrong = commands.run(script, "--methods", "magic", "--out", tmp_path / "c", code=2)
    assert "expected methods of" in wrong.stderr
