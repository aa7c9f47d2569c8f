"""Stores, statistics, measures, maps: the half of the package that needs no model."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

import interp
from interp import measures, stats
from interp import vocabulary as labels
from interp.maps import grid as maps
from interp.maps.named import target_index
from interp.store import opening as store
from interp.store import writing
from interp.store.joining import stack
from tests.support.writer import facts, one_sample


@pytest.fixture
def written(tmp_path):
    """A run of three samples of different lengths in two shards, and the samples' datasets."""
    made = {
        "a": one_sample(3, 12, 0),
        "b": one_sample(5, 10, 1),
        "c": one_sample(2, 15, 2),
    }
    plan = [["a", "b"], ["c"]]
    run = writing.start_run(tmp_path / "run", {"model": "m", "dtype": "float32"}, plan)
    statuses = {name: {"status": "ok", "reason": ""} for name in made}
    shards = [stack([made["a"], made["b"]], facts(["a", "b"])), stack([made["c"]], facts(["c"]))]
    for number, (names, shard) in enumerate(zip(plan, shards, strict=True)):
        run.commit(number, shard, {"statuses": {name: statuses[name] for name in names}})
    run.finish({})
    return tmp_path / "run", made


def test_a_run_gives_every_sample_back(written):
    path, made = written
    run = interp.open_run(path)
    assert run.sizes["sample"] == 3
    assert run.sizes["target"] == 10
    assert run.sizes["source"] == 15
    assert run.attrs["model"] == "m"
    for name, dataset in made.items():
        mine = run.isel(target=(run["target_sample"] == name).values).sel(sample=name)
        n_sources = dataset.sizes["source"]
        np.testing.assert_array_equal(mine["effect"], dataset["effect"])
        np.testing.assert_array_equal(mine["direct"][:, :n_sources], dataset["direct"])
        assert (mine["direct"][:, n_sources:] == 0).all()
        assert (
            mine["source_role"].values[:n_sources].tolist()
            == dataset["source_role"].values.tolist()
        )
        assert set(mine["source_role"].values[n_sources:]) <= {"padding"}
        assert mine["target_role"].values.tolist() == dataset["target_role"].values.tolist()
        grid = maps.on_grid(mine["direct"].isel(target=0))
        np.testing.assert_array_equal(grid, dataset["direct"].values[0, 1:7].reshape(2, 3))


def test_what_the_manifest_does_not_confirm_is_not_opened(written, tmp_path):
    path, _ = written
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"schema": 0}))
    with pytest.raises(ValueError, match="expected schema \\d, got 0"):
        interp.open_run(path)
    with pytest.raises(ValueError, match="a run with a manifest"):
        interp.open_run(tmp_path / "nothing")
    writing.start_run(tmp_path / "empty", {}, []).finish({})
    with pytest.raises(ValueError, match="a sample that could be measured"):
        interp.open_run(tmp_path / "empty")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    with pytest.raises(ValueError, match="an empty folder or a run"):
        writing.start_run(tmp_path / "thesis", {}, [])
    (tmp_path / "thesis" / "manifest.json").write_text('{"name": "an extension"}')
    with pytest.raises(ValueError, match="an empty folder or a run"):
        writing.start_run(tmp_path / "thesis", {}, [])
    assert (tmp_path / "thesis" / "chapter.tex").exists()


@pytest.mark.parametrize("name", ["../evil", "a/b", ".hidden", ""])
def test_sample_ids_cannot_leave_the_folder(tmp_path, name):
    with pytest.raises(ValueError, match="a sample id"):
        store.image_path(tmp_path, name)


# ---------------------------------------------------------------------------- statistics, measures


@pytest.mark.parametrize("law", ["normal", "exponential", "binomial"])
def test_intervals_cover_the_mean_of_a_known_law(law, tried):
    trials, low, high = (2000, 0.93, 0.97) if os.environ.get("SOAK") else (150, 0.88, 0.99)
    rng = np.random.default_rng(0)
    draw, mean = {
        "normal": (lambda shape: rng.normal(1, 2, shape), 1.0),
        "exponential": (lambda shape: rng.exponential(size=shape), 1.0),
        "binomial": (lambda shape: rng.binomial(1, 0.3, shape).astype(float), 0.3),
    }[law]
    draws = xr.DataArray(draw((trials, 100)), dims=("trial", "sample"))
    found = stats.mean_interval(draws)
    assert found["estimate"].dims == ("trial",)
    covered = float(((found["lower"] <= mean) & (found["upper"] >= mean)).mean())
    assert low < covered < high, (law, covered)
    np.testing.assert_allclose(found["estimate"], draws.mean("sample"))
    tried(
        "intervals of 95 % on known laws, 100 images each",
        trials,
        "cover the mean in 93 to 97 % of the cases",
    )


def test_targets_of_one_image_are_one_unit(written):
    """An interval over images does not shrink when every image brings its targets twice."""
    run = interp.open_run(written[0]).load()
    twice = xr.concat(
        [run, run], dim="target", data_vars="minimal", coords="minimal", compat="equals"
    )
    assert twice.sizes["target"] == 2 * run.sizes["target"]
    once, again = (measures.per_image(r, "total") for r in (run, twice))
    np.testing.assert_allclose(once, again)
    a, b = (stats.mean_interval(x.sel(token_class="thinking")) for x in (once, again))
    np.testing.assert_allclose(a["upper"] - a["lower"], b["upper"] - b["lower"])
    assert (a["n"] == 3).all()


def test_shares_are_ratios_of_sums():
    rng = np.random.default_rng(1)
    part = xr.DataArray(rng.normal(1, 1, 80), dims="sample")
    whole = xr.DataArray(rng.normal(3, 1, 80), dims="sample")
    found = stats.share_interval(part, whole)
    assert float(found["estimate"]) == pytest.approx(float(part.sum() / whole.sum()))
    assert float(found["lower"]) < float(found["estimate"]) < float(found["upper"])


def test_missing_units_are_left_out_and_counted():
    values = xr.DataArray([[1.0, 2.0, np.nan], [np.nan] * 3], dims=("path", "sample"))
    found = stats.mean_interval(values)
    assert found["n"].values.tolist() == [2, 0]
    assert float(found["estimate"][0]) == 1.5
    assert np.isnan(found["estimate"][1])
    with pytest.raises(ValueError, match="expected dimensions"):
        stats.mean_interval(values, over="image")


def test_per_image_means_leave_undefined_targets_out(written):
    path, made = written
    run = interp.open_run(path).load()
    run["is_defined"][0, 0] = False  # first thinking token of sample a
    found = measures.per_image(run, "total")
    assert found.dims[:2] == ("token_class", "sample")
    one = found.sel(token_class="thinking", sample="a", source_set="image")
    assert float(one) == pytest.approx(float(made["a"]["total"].values[1, 0]), rel=1e-6)
    answer = found.sel(token_class="answer", sample="b", source_set="question")
    assert float(answer) == pytest.approx(float(made["b"]["total"].values[4, 1]), rel=1e-6)


def test_relative_errors_see_what_does_not_add_up(written):
    run = interp.open_run(written[0]).load()
    errors = measures.relative_errors(run)
    np.testing.assert_allclose(errors["ledger"], 1e-6)
    assert float(errors["effects"].max()) < 1e-6
    run["effect"][3, 1, 2] += 1
    assert float(measures.relative_errors(run)["effects"][3]) == pytest.approx(0.25, rel=1e-4)


def test_vocabulary_is_enforced():
    with pytest.raises(ValueError, match="VARIABLES, got 'loudness'"):
        labels.describe(xr.Dataset({"loudness": ("target", [1.0])}))
    with pytest.raises(ValueError, match="'head'"):
        labels.require(xr.DataArray([1.0], dims="layer"), "layer", "head")
    described = labels.describe(xr.Dataset({"total": ("target", [1.0])}))
    assert described["total"].attrs["units"] == "logit"


def test_targets_are_found_by_index_token_and_role(written):
    ledger = written[1]["b"]
    assert target_index(ledger, 2) == 2
    assert target_index(ledger, "t3") == 3
    assert target_index(ledger, "answer") == 4
    assert target_index(ledger, -1) == 4
    for wrong in (5, -6, "t9"):
        with pytest.raises(ValueError, match="target"):
            target_index(ledger, wrong)


@pytest.mark.long
def test_figures_redraw_where_torch_is_absent():
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'nnsight', 'transformers', 'peft'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import interp\n"
        "from analyses.reports.direct_vs_indirect import page\n"
        "from analyses.reports.faithfulness import page\n"
        "from analyses.reports.before_after import page\n"
        "from interp import vocabulary, data, store, stats, measures, maps, plots, accessor\n"
        "assert interp.load_samples('digits', limit=2)[1].boxes.shape == (1, 4)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_dataset_with_large_whole_numbers_becomes_netcdf_or_leaves_no_file(tmp_path):
    """`--max-memory 2G` is 2**31, one more than the format has."""
    attributes = {"max_memory": 2**31, "small": 7, "is_on": True, "nothing": None, "rows": [1, 2]}
    ds = xr.Dataset({"n": ("x", np.array([2**40, -1]))}, attrs=attributes)
    store.to_netcdf(ds, tmp_path / "a.nc")
    again = xr.open_dataset(tmp_path / "a.nc", engine="scipy")
    assert again["n"].values.tolist() == [2**40, -1]
    assert json.loads(again.attrs["max_memory"]) == 2**31 and again.attrs["small"] == 7
    assert json.loads(again.attrs["rows"]) == [1, 2]
    wide = xr.Dataset({"n": ("x", np.array([2**53 + 1]))})
    with pytest.raises(ValueError, match=r"n: expected whole numbers below 2\*\*53"):
        store.to_netcdf(wide, tmp_path / "b.nc")
    assert not (tmp_path / "b.nc").exists()
