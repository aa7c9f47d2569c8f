"""Accidents of a run on disk: a tenth of it here, all of it with `make soak`."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import interp
from interp.store import opening as store
from interp.store import writing
from interp.store.joining import stack
from tests.support import ROOT, writer

IS_SOAK = bool(os.environ.get("SOAK"))


def in_a_small_process(action: str, folder: Path, *numbers: int):
    """Without torch, so that it forks at once."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.writer", action, str(folder), *map(str, numbers)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture
def run(tmp_path):
    """A whole run of four shards."""
    writer.write(tmp_path / "run", [writer.shard(k) for k in range(writer.N_SHARDS)])
    return tmp_path / "run"


def files(run: Path) -> list[Path]:
    """The path of the second shard."""
    return sorted(p for p in store.shard_path(run, 1).rglob("*") if p.is_file())


def test_a_killed_writer_leaves_nothing_that_opens_and_another_goes_on(tmp_path, tried):
    count = 100 if IS_SOAK else 5
    found = in_a_small_process("kills", tmp_path, count, 0)
    assert found["midway"] > count / 2, "most kills have to hit a run in the making"
    assert found["opened_incomplete"] == 0
    assert found["differ_after_resuming"] == 0
    tried(
        "kill −9 while a run is written",
        count,
        "no incomplete run opens; a resumed one has the bytes of one never cut off",
    )


@pytest.mark.long
def test_every_flipped_bit_is_refused_or_harmless(run, tried):
    """Whole files are compared; without that, a chunk's checksum is tested when it is read."""
    expected = interp.open_run(run).load()
    count = 0
    for file in files(run):
        content = file.read_bytes()
        for at in range(count % 10, len(content), 1 if IS_SOAK else 60):
            bit = 1 << (at * 7 + count) % 8
            file.write_bytes(content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :])
            with pytest.raises(ValueError, match=r"shard 00001\.zarr .* got other bytes"):
                interp.open_run(run)
            if count % 20 == 0:
                _refused_or_the_same(run, expected)
            count += 1
        file.write_bytes(content)
    assert interp.open_run(run).identical(expected)
    assert count > 200
    tried(
        "one bit of one byte of a shard flipped",
        count,
        "open_run names the shard; unless all bytes are compared, reading fails",
    )


def _refused_or_the_same(run, expected) -> None:
    try:
        found = interp.open_run(run, check="structure").load()
    except (ValueError, RuntimeError):
        return
    assert found.identical(expected), "a flipped bit was read as a number"


def test_missing_and_truncated_files_are_refused(run, tried):
    count = 0
    for file in files(run):
        content = file.read_bytes()
        for check in store.CHECKS:
            for damaged in (None, b"", content[: len(content) // 2], content + b"\n"):
                file.unlink()
                if damaged is not None:
                    file.write_bytes(damaged)
                with pytest.raises(ValueError, match=r"shard 00001\.zarr .* got other bytes"):
                    interp.open_run(run, check=check)
                file.write_bytes(content)
                count += 1
    shutil.rmtree(store.shard_path(run, 1))
    with pytest.raises(ValueError, match=r"shard 00001\.zarr .* got none"):
        interp.open_run(run)
    tried(
        "a file of a shard missing, empty, cut in half or longer", count, "open_run names the shard"
    )


def test_damaged_manifests_are_refused(run, tried):
    confirmation = store.shard_path(run, 2).with_suffix(".json")
    for path, message in (
        (run / "manifest.json", "expected JSON|expected a run|expected schema"),
        (confirmation, r"00002\.zarr .* no confirmation"),
    ):
        content = path.read_text()
        for damaged in (None, "", content[: len(content) // 2], "[]", "{}"):
            path.unlink()
            if damaged is not None:
                path.write_text(damaged)
            with pytest.raises(ValueError, match=message):
                interp.open_run(run)
            path.write_text(content)
    said = json.loads(confirmation.read_text())
    confirmation.write_text(json.dumps(said | {"samples": ["another"]}))
    with pytest.raises(ValueError, match=r"00002\.zarr .* other samples"):
        interp.open_run(run)
    tried(
        "a manifest missing, empty, cut in half or of something else",
        11,
        "open_run says what it expected",
    )


@pytest.mark.long
def test_a_full_disk_is_an_error_and_the_run_goes_on_afterwards(tmp_path, tried):
    limits = (50, 400, 700)
    found = in_a_small_process("limited", tmp_path, *limits)
    assert found == [{"refused": True, "opened": False, "same_after_resuming": True}] * len(limits)
    tried(
        "the device takes no more bytes, at three points",
        3,
        "an error in one line; nothing opens; --resume gives the same bytes",
    )


def test_a_read_only_folder_is_an_error(tmp_path, tried):
    assert in_a_small_process("unprivileged", tmp_path) == {"code": 7, "files": 0}
    tried("a folder that may only be read", 1, "an error in one line, nothing is written")


def _hold(path: Path, is_held, go) -> None:
    with writing.only_writer(path):
        is_held.set()
        go.wait(60)


def test_a_second_writer_is_refused(tmp_path, run, tried):
    context = multiprocessing.get_context("fork")
    is_held, go = context.Event(), context.Event()
    first = context.Process(target=_hold, args=(run, is_held, go))
    first.start()
    assert is_held.wait(60)
    with pytest.raises(ValueError, match="to be its only writer"), writing.only_writer(run):
        pass
    first.kill()
    first.join()
    with writing.only_writer(run):  # the lock went with the process
        pass
    tried("two commands that write one run", 1, "the second is refused; a killed one holds nothing")


def test_other_settings_or_samples_are_not_gone_on_with(run):
    plan = writer.plan()
    for other, shards in (({"seed": 1}, plan), ({}, plan[:2])):
        with pytest.raises(ValueError, match="the run that is there to go on with"):
            writing.start_run(run, writer.SETTINGS | other, shards, resume=True)
    again = writing.start_run(run, writer.SETTINGS, plan, resume=True)
    assert list(again.confirmed()) == [0, 1, 2, 3]
    writing.start_run(run, writer.SETTINGS, plan, overwrite=True)
    with pytest.raises(ValueError, match="a finished run, got one that was cut off"):
        interp.open_run(run)


def test_a_run_with_something_in_it_is_replaced_when_asked_to_alone(tmp_path):
    """An hour's work on disk is not lost for a forgotten --resume."""
    path, plan = tmp_path / "run", writer.plan()
    for _ in range(2):  # nothing is in it yet
        begun = writing.start_run(path, writer.SETTINGS, plan)
    for number, said in ((0, "1 of its 4 shards"), (2, "2 of its 4 shards")):
        begun.commit(number, None, {"statuses": []})
        with pytest.raises(ValueError, match=rf"{said}; pass --resume .*, --overwrite"):
            writing.start_run(path, writer.SETTINGS, plan)
    assert list(begun.confirmations()) == [0, 2]
    writing.start_run(path, writer.SETTINGS, plan, overwrite=True)
    assert not begun.confirmations()


def test_shards_that_do_not_belong_together_are_refused(run):
    for number in (0, 1):
        path = store.shard_path(run, number).with_suffix(".json")
        said = json.loads(path.read_text())
        path.write_text(json.dumps(said | {"attributes": {"model_hash": f"m{number}"}}))
    with pytest.raises(ValueError, match="shards with one model_hash, got 'm0' and 'm1'"):
        interp.open_run(run)


@pytest.mark.parametrize("has_dask", [True, False])
def test_an_unfinished_run_opens_in_part_lazily_with_dask(tmp_path, monkeypatch, has_dask):
    pytest.importorskip("dask")
    if not has_dask:
        monkeypatch.setattr(store, "find_spec", lambda name: None)
    path = tmp_path / "run"
    run = writing.start_run(path, writer.SETTINGS, writer.plan())
    for number in (2, 0):
        statuses = {name: {"status": "ok", "reason": ""} for name in run.shards[number]}
        run.commit(number, writer.shard(number), {"statuses": statuses})
    found = interp.open_run(path, partial=True)
    assert found["sample"].values.tolist() == [*run.shards[0], *run.shards[2]]
    assert bool(found["direct"].chunks) == has_dask
    means = found["total"].sel(source_set="image").groupby("target_role").mean()
    assert np.isfinite(means).all() and means.sizes["target_role"] == 2
    assert found["family"].isel(sample=0).item() == "sum"
    np.testing.assert_array_equal(found["total"].isel(target=slice(0, 6)), writer.shard(0)["total"])


@pytest.mark.long
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(9, 14)), min_size=1, max_size=4),
    st.integers(1, 3),
)
def test_what_is_stored_comes_back(tmp_path, sizes, shard_size):
    """Samples of any lengths in shards of any size: the same numbers, labels and order."""
    made = {f"s{k}": writer.one_sample(*size, seed=k) for k, size in enumerate(sizes)}
    names = list(made)
    plan = [names[k : k + shard_size] for k in range(0, len(names), shard_size)]
    run = writing.start_run(tmp_path / "run", {}, plan, overwrite=True)
    for number, some in enumerate(plan):
        shard = stack([made[name] for name in some], writer.facts(some))
        run.commit(number, shard, {"statuses": {}})
    run.finish({})
    found = interp.open_run(tmp_path / "run").load()
    assert found["sample"].values.tolist() == names
    for name, one in made.items():
        mine = found.isel(target=(found["target_sample"] == name).values).sel(sample=name)
        n = one.sizes["source"]
        np.testing.assert_array_equal(mine["direct"][:, :n], one["direct"])
        assert (mine["direct"][:, n:] == 0).all()
        for key in ("effect", "total", "target_token", "target_role"):
            np.testing.assert_array_equal(mine[key], one[key])
        np.testing.assert_array_equal(mine["source_role"][:n], one["source_role"])
        assert (mine["source_role"][n:] == "padding").all()


def test_a_sample_as_netcdf(run, tmp_path):
    whole = interp.open_run(run)
    one = whole.sel(sample="s2").isel(target=(whole["target_sample"] == "s2").values)
    store.to_netcdf(one, tmp_path / "s2.nc")
    again = xr.open_dataset(tmp_path / "s2.nc", engine="scipy")
    for name in ("effect", "direct", "is_defined", "total", "source_role"):
        np.testing.assert_array_equal(again[name], one[name])
    assert json.loads(again.attrs["statuses"]) == whole.attrs["statuses"]
    assert again.attrs["model"] == "m"
