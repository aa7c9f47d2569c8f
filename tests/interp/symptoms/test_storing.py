"""Datasets and runs on disk as users of xarray and zarr found them wrong."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import interp
from tests.support.symptoms import TWO


def test_a_run_that_was_opened_by_a_relative_path_survives_a_change_of_folder(written, monkeypatch):
    """After os.chdir a lazily opened file is another one, or empty, without an error.

    pydata/xarray #5132, Backend caching should not use a relative path
    """
    expected = interp.open_run(written.path)["total"].load()
    monkeypatch.chdir(written.path.parent)
    run = interp.open_run("run")
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(run["total"].load(), expected)
    np.testing.assert_array_equal(run["direct"].isnull().sum(), 0)


@pytest.mark.parametrize(
    "value",
    [np.int64(3), np.float32(0.5), np.bool_(True), np.arange(3), ("a", "b"), Path("x"), {1: "a"}],
    ids=lambda v: type(v).__name__,
)
def test_attributes_of_any_kind_can_be_saved(tiny, sample, tmp_path, value):
    """An attribute that is not text or a number ends to_netcdf.

    pydata/xarray #3743 (Invalid value for attr), #7608 (list of strings) and #1681 (dict)
    """
    ds = interp.extract.ledger(tiny, sample, detail="summary", **TWO).assign_attrs(mine=value)
    interp.store.to_netcdf(ds, tmp_path / "a.nc")
    again = xr.open_dataset(tmp_path / "a.nc", engine="scipy")
    assert "mine" in again.attrs
    np.testing.assert_array_equal(again["direct_by_layer"], ds["direct_by_layer"])


def test_labels_come_back_from_netcdf_as_text(tiny, sample, tmp_path):
    """Text comes back as bytes, or mangled, from NetCDF 3.

    pydata/xarray #751 (String type conversion when saving netCDF) and #1638
    """
    odd = replace(sample, answer="grün 红 🐶", thinking="ça")
    ds = interp.extract.ledger(tiny, odd, detail="tokens")
    interp.store.to_netcdf(ds, tmp_path / "ä 图.nc")
    again = xr.open_dataset(tmp_path / "ä 图.nc", engine="scipy").load()
    for name in ("target_token", "source_token", "source_role"):
        assert again[name].values.tolist() == ds[name].values.tolist()


@pytest.mark.parametrize(
    "name",
    ["ledger", "effects", "first_order", "origins", "patch_effects", "residual", "maps",
     "node_effects", "shapley"],
)  # fmt: skip
def test_every_extraction_can_be_saved_as_netcdf(tiny, sample, refs, tmp_path, name):
    """A global attribute of an unlucky name ends writing (effects: mode='zero').

    pydata/xarray #3374 (Key error in to_netcdf) and #3647, both the scipy backend's attributes
    """
    options = {"node_effects": {"references": refs}, "shapley": {"references": refs}}.get(name, {})
    if name == "maps":
        options = {"max_targets": 2}
    elif name == "patch_effects":
        options = {"positions": [55]}
    else:
        options |= TWO
    ds = getattr(interp.extract, name)(tiny, sample, **options)
    interp.store.to_netcdf(ds, tmp_path / "a.nc")
    again = xr.open_dataset(tmp_path / "a.nc", engine="scipy").load()
    for variable in ds.data_vars:
        np.testing.assert_array_equal(again[variable], ds[variable])
    renamed = {"mode": "mode_"}  # which the file object has for itself
    assert {renamed.get(k, k): str(v) for k, v in ds.attrs.items()} == {
        k: str(v) for k, v in again.attrs.items()
    }


def test_undefined_effects_survive_netcdf_and_a_run(tiny, sample, tmp_path):
    """NaN is written as a fill value and comes back as a number, or the mask as floats.

    carbonplan/ndpyramid PR #113 (Only set fill value as nan for floating point arrays); xarray/zarr
    """
    ds = interp.extract.effects(tiny, sample, sources={"late": [57], "early": [3]}, positions=[40])
    assert ds["is_defined"].values.tolist() == [[False, True]]
    assert np.isnan(ds["total"].sel(source_set="late")).all()
    ds.attrs.pop("mode")  # a fault of its own, above
    interp.store.to_netcdf(ds, tmp_path / "a.nc")
    again = xr.open_dataset(tmp_path / "a.nc", engine="scipy").load()
    np.testing.assert_array_equal(again["total"], ds["total"])
    assert again["is_defined"].dtype == bool


def test_groups_without_a_value_do_not_lose_the_others(written):
    """NaN in a group ends or empties the whole groupby.

    pydata/xarray #2383, groupby().apply() on variable with NaNs raises IndexError
    """
    from interp import measures

    run = interp.open_run(written.path).load()
    of_a = (run["target_sample"] == "a").values
    run["is_defined"][of_a, :] = False
    got = measures.per_image(run, "total")
    assert got.sel(sample="a").isnull().all()
    assert got.sel(sample=["b", "c"]).notnull().all()


def test_a_token_of_a_nul_keeps_its_label(tiny, sample):
    """Trailing NUL bytes are cut off strings.

    zarr-developers/zarr-python #474, data of array with dtype set to bytes is truncated
    """
    odd = replace(sample, answer="a\x00b\x00")
    ds = interp.extract.ledger(tiny, odd, detail="summary")
    text = "".join(ds["target_token"].values[ds["target_role"].values == "answer"].tolist())
    assert text == "a␀b␀"


def test_empty_labels_stay_empty(tmp_path):
    """An empty string comes back as "0" (zarr-developers/zarr-python #2792)."""
    from interp.store import writing
    from interp.store.joining import stack
    from tests.support.writer import facts, one_sample

    one = one_sample(3, 12, 0)
    one = one.assign_coords(target_token=("target", ["", "0", "None"]))
    run = writing.start_run(tmp_path / "run", {}, [["a"]])
    run.commit(0, stack([one], facts(["a"])), {"statuses": {"a": {"status": "ok", "reason": ""}}})
    run.finish({})
    assert interp.open_run(tmp_path / "run")["target_token"].values.tolist() == ["", "0", "None"]


def test_a_run_behind_symlinks_opens(written, tmp_path):
    """A store whose folder is a link to another disk is not found (zarr-python)."""
    elsewhere = tmp_path / "disk 2"
    elsewhere.mkdir()
    shutil.move(written.path / "shards", elsewhere / "shards")
    (written.path / "shards").symlink_to(elsewhere / "shards")
    (tmp_path / "link").symlink_to(written.path)
    assert interp.open_run(tmp_path / "link")["total"].notnull().all()
