"""Symptoms that people reported of neighbouring packages, and odd inputs, tried on this one."""

import copy
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import xarray as xr
from PIL import Image

import interp
from interp.data.images import open_image
from interp.data.sample import Sample
from interp.inputs import prompts
from interp.inputs.completions import completion as completion_of
from tests.support import ROOT

# ---------------------------------------------------------------- fixtures and helpers


@pytest.fixture(scope="module")
def tiny():
    return interp.load_model("tiny")


@pytest.fixture(scope="module")
def samples():
    return interp.load_samples("digits", split="test", limit=8)


@pytest.fixture(scope="module")
def sample(samples):
    return samples[6]


@pytest.fixture(scope="module")
def maps(tiny, sample):
    return interp.extract.maps(tiny, sample, kinds=("direct", "bottleneck"))


@pytest.fixture(scope="module")
def refs(tiny, sample):
    return interp.extract.references(tiny, sample, kinds=("blur",))


@pytest.fixture
def own(tiny):
    """A VLM of one's own, whose weights may be changed."""
    return replace(tiny, model=copy.deepcopy(tiny.model))


TWO = {"positions": [50, 55]}


def png(image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, options.pop("format", "PNG"), **options)
    return buffer.getvalue()


def colour(image, at=(20, 20)) -> tuple:
    return image.getpixel(at)


def raw_logits(vlm, sample, rows):
    """Centred logits of the tokens that follow `rows`, by the model's own forward."""
    batch = prompts.teacher_forced(vlm.processor, sample, None).batch
    with torch.no_grad():
        logits = vlm.model(**batch).logits[0].double()
    ids = batch["input_ids"][0]
    return np.array([float(logits[r, ids[r + 1]] - logits[r].mean()) for r in rows])


def assert_exact(vlm, sample, **options):
    """Parts sum to the logit, and the logit is the model's own."""
    ds = interp.extract.ledger(vlm, sample, detail="summary", **TWO, **options)
    assert float(np.abs(ds.remainder / ds.magnitude).max()) < 1e-5
    np.testing.assert_allclose(ds.logit, raw_logits(vlm, sample, TWO["positions"]), atol=2e-4)
    return ds


def adapted(vlm, config, scale=0.05, seed=0, name="default"):
    model = peft.get_peft_model(vlm.model, config, adapter_name=name).eval()
    shake(model, scale, seed)
    return replace(vlm, model=model)


def shake(model, scale=0.05, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "lora_" in parameter_name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


def lora(**options):
    return peft.LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"]} | options)


def write_rows(folder: Path, rows, split="test", **image_options) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "images").mkdir(exist_ok=True)
    Image.new("RGB", (56, 56), "red").save(folder / "images" / "a.png")
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return f"jsonl:{folder}"


ROW = {"id": "a", "image": "images/a.png", "question": "What colour?", "answer": "red"}


def hf_rows(n=2):
    content = png(Image.new("RGB", (56, 56), "red"))
    return {
        "image": [{"bytes": content, "path": None}] * n,
        "question": [f"q{k}" for k in range(n)],
        "answer": [f"a{k}" for k in range(n)],
    }


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")


@pytest.fixture
def written(tmp_path):
    """A run of two shards, as tests/interp/store has it."""
    from interp.store import writing
    from interp.store.joining import stack
    from tests.support.writer import facts, one_sample

    def write(folder, seed=0):
        made = {k: one_sample(3 + i, 12 + i, i + seed) for i, k in enumerate("abc")}
        plan = [["a", "b"], ["c"]]
        run = writing.start_run(folder, {"model": "m", "dtype": "float32", "seed": seed}, plan)
        for number, names in enumerate(plan):
            shard = stack([made[n] for n in names], facts(names))
            statuses = {n: {"status": "ok", "reason": ""} for n in names}
            run.commit(number, shard, {"statuses": statuses})
        run.finish({})
        return folder

    write(tmp_path / "run")
    write.path = tmp_path / "run"
    return write


# ================================================================ Pillow


def test_a_colour_that_png_calls_transparent_is_laid_on_white():
    """An RGB PNG names one colour as transparent (tRNS) and the loader forgets it.

    python-pillow/Pillow #421, Loading RGB image with tRNS header ignores transparency
    """
    content = png(Image.new("RGB", (40, 40), (255, 0, 255)), transparency=(255, 0, 255))
    assert colour(open_image(content)) == (255, 255, 255)


def test_grey_with_a_transparent_level_is_laid_on_white():
    """The same for 8-bit grey (python-pillow/Pillow #423, tRNS header when converting)."""
    content = png(Image.new("L", (40, 40), 7), transparency=7)
    assert colour(open_image(content)) == (255, 255, 255)


def test_deep_grey_with_a_transparent_level_is_laid_on_white():
    """The same for 16-bit grey, whose tRNS stays in info (python-pillow/Pillow #423)."""
    image = Image.fromarray(np.full((40, 40), 1000, np.uint16))
    content = _png16_with_trns(1000)
    assert Image.open(io.BytesIO(content)).info.get("transparency") is not None
    assert colour(open_image(image)) == (4, 4, 4)
    assert colour(open_image(content)) == (255, 255, 255)


def _png16_with_trns(level: int) -> bytes:
    import struct
    import zlib

    def chunk(name, content):
        total = name + content
        return struct.pack(">I", len(content)) + total + struct.pack(">I", zlib.crc32(total))

    rows = (b"\x00" + struct.pack(">H", level) * 40) * 40
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 40, 40, 16, 0, 0, 0, 0))
        + chunk(b"tRNS", struct.pack(">H", level))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_a_palette_with_transparency_of_its_own_is_laid_on_white():
    """A palette in RGBA loses its transparency (python-pillow/Pillow #6348)."""
    image = Image.new("P", (40, 40), 0)
    image.putpalette([0, 0, 0, 0, 255, 0, 0, 255], "RGBA")
    assert colour(open_image(image)) == (255, 255, 255)
    image.putpixel((20, 20), 1)
    assert colour(open_image(image)) == (255, 0, 0)


def test_half_transparent_palette_entries_are_mixed_with_white():
    """Palette images with bytes as transparency come out grainy (python-pillow/Pillow #7288)."""
    image = Image.new("P", (40, 40), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    got = colour(open_image(png(image, transparency=bytes([128, 255]))))
    assert all(abs(c - 127) <= 1 for c in got)


def test_cmyk_photos_keep_their_colours():
    """A CMYK JPEG comes out with inverted colours (python-pillow/Pillow #4860)."""
    content = png(Image.new("RGB", (64, 64), (200, 30, 30)).convert("CMYK"), format="JPEG")
    got = np.array(colour(open_image(content)), dtype=int)
    assert np.abs(got - (200, 30, 30)).max() < 12


def test_a_map_is_drawn_over_the_upright_photo(maps, tmp_path):
    """A photo is shown as the sensor saw it, so the overlay lies on the wrong places.

    python-pillow/Pillow #9109, Image ignores orientation in EXIF data for certain images
    """
    import matplotlib.pyplot as plt

    exif = Image.Exif()
    exif[0x0112] = 6
    photo = Image.open(
        io.BytesIO(png(Image.new("RGB", (120, 60), "red"), format="JPEG", exif=exif))
    )
    ax = maps.vlm.plot("answer", "direct", image=photo)
    height, width = ax.images[0].get_array().shape[:2]
    plt.close("all")
    assert (height, width) == (120, 60)


def test_the_callers_image_stays_as_it_is(tmp_path):
    """Reading an image closes or converts the caller's object.

    python-pillow/Pillow #3676 (files are closed overeagerly) and #1630 (seek of closed file)
    """
    Image.new("P", (30, 20), 3).save(tmp_path / "a.gif")
    image = Image.open(tmp_path / "a.gif")
    open_image(image)
    open_image(image)
    assert image.mode == "P" and image.size == (30, 20)
    image.load()
    assert image.getpixel((1, 1)) is not None


# ================================================================ datasets


def test_parquet_with_categories_is_read(tmp_path):
    """A categorical column of pandas ends reading with NotImplementedError.

    huggingface/datasets #5706, Support categorical data types for Parquet
    """
    import pandas as pd

    frame = pd.DataFrame(hf_rows()).assign(family=pd.Categorical(["x", "y"]))
    frame.to_parquet(tmp_path / "test.parquet")
    try:
        got = interp.load_samples(f"hf:{tmp_path}", split="test")
    except ValueError as error:
        assert "family" in str(error) or "dictionary" in str(error)
        return
    assert [one.family for one in got] == ["x", "y"]


def test_parquet_of_polars_is_read(tmp_path):
    """polars writes large_string and large_binary, which do not cast to images.

    huggingface/datasets #7765, polars dataset cannot cast column to Image/Audio/Video
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = hf_rows()
    image = pa.array(
        rows["image"], pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())])
    )
    table = pa.table(
        {
            "image": image,
            "question": pa.array(rows["question"], pa.large_string()),
            "answer": pa.array(rows["answer"], pa.large_string()),
            "boxes": pa.array(
                [[[0.1, 0.1, 0.5, 0.5]]] * 2, pa.large_list(pa.large_list(pa.float64()))
            ),
        }
    )
    pq.write_table(table, tmp_path / "test.parquet")
    got = interp.load_samples(f"hf:{tmp_path}", split="test")
    assert [one.answer for one in got] == ["a0", "a1"]
    assert colour(open_image(got[0].image)) == (255, 0, 0)
    np.testing.assert_allclose(got[0].boxes, [[0.1, 0.1, 0.5, 0.5]])


def test_parquet_of_polars_with_bare_bytes_is_read(tmp_path):
    """The image column is large_binary alone (huggingface/datasets #7765, PR #7800)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = hf_rows()
    content = pa.array([one["bytes"] for one in rows["image"]], pa.large_binary())
    table = pa.table({"image": content, "question": rows["question"], "answer": rows["answer"]})
    pq.write_table(table, tmp_path / "test.parquet")
    got = interp.load_samples(f"hf:{tmp_path}", split="test")
    assert colour(open_image(got[0].image)) == (255, 0, 0)


@pytest.mark.parametrize(
    "name", ["data[v2]", "data*", "what?", "a b", "ünïcode 图", ".hidden", "{x}"]
)
def test_a_folder_of_any_name_is_read(tmp_path, name):
    """Brackets in a folder's name are taken for a pattern, hidden folders are left out.

    huggingface/datasets #7468 (load_dataset can't solve folder path with "[]") and #6073
    """
    import pandas as pd

    (tmp_path / name).mkdir()
    pd.DataFrame(hf_rows()).to_parquet(tmp_path / name / "test.parquet")
    assert len(interp.load_samples(f"hf:{tmp_path / name}", split="test")) == 2


@pytest.mark.parametrize("how", ["numpy", "torch", "pandas", "columns"])
def test_a_data_set_that_was_saved_in_a_format_is_the_same(tmp_path, how):
    """A data set remembers its format on disk and gives other types or fewer columns.

    huggingface/datasets #5050 / PR #5073, Restore saved format state in load_from_disk
    """
    import datasets

    rows = hf_rows() | {"boxes": [[[0.1, 0.1, 0.5, 0.5]], None]}
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    if how == "columns":
        table = table.with_format(None, columns=["question", "answer"])
    else:
        table = table.with_format(how)
    table.save_to_disk(str(tmp_path / "saved"))
    got = interp.load_samples(f"hf:{tmp_path / 'saved'}", split="test")
    assert [one.answer for one in got] == ["a0", "a1"]
    np.testing.assert_allclose(got[0].boxes, [[0.1, 0.1, 0.5, 0.5]])
    assert got[1].boxes is None
    assert colour(open_image(got[0].image)) == (255, 0, 0)


def test_a_file_that_was_written_again_is_read_again(tmp_path):
    """A changed file under the same name is served from the cache.

    huggingface/datasets #444 and #2956, Cache problem in the load_dataset method
    """
    import pandas as pd

    for answers in (["old", "old"], ["new", "new"]):
        pd.DataFrame(hf_rows() | {"answer": answers}).to_parquet(tmp_path / "test.parquet")
        got = interp.load_samples(f"hf:{tmp_path}", split="test")
        assert [one.answer for one in got] == answers


def test_class_labels_are_not_taken_for_numbers(tmp_path):
    """A ClassLabel column gives numbers instead of names.

    huggingface/datasets #4210, Cannot cast array data; left out with a reason or named
    """
    import datasets

    table = datasets.Dataset.from_dict(hf_rows() | {"answer": [0, 1]})
    table = table.cast_column("image", datasets.Image())
    table = table.cast_column("answer", datasets.ClassLabel(names=["cat", "dog"]))
    table.save_to_disk(str(tmp_path / "saved"))
    try:
        got = interp.load_samples(f"hf:{tmp_path / 'saved'}", split="test")
    except ValueError as error:
        assert "of another type" in str(error)
    else:
        assert [one.answer for one in got] == ["cat", "dog"]


# ================================================================ xarray


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


# ================================================================ zarr


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


# ================================================================ peft


def test_merging_one_of_two_active_adapters_stays_exact(own, sample):
    """Once one adapter is merged, the other active one is silently not applied.

    huggingface/peft #3756, Merging a subset of the active adapters silently disables the remaining
    """
    vlm = adapted(own, lora(), name="A")
    vlm.model.add_adapter("B", lora())
    shake(vlm.model, seed=1)
    vlm.model.base_model.set_adapter(["A", "B"])
    vlm.model.eval()
    both = assert_exact(vlm, sample)
    vlm.model.merge_adapter(adapter_names=["A"])
    one = assert_exact(vlm, sample)
    assert float(np.abs(one.logit - both.logit).max()) > 1e-3
    assert one.attrs["adapter_hash"] != both.attrs["adapter_hash"]


def test_merging_twice_changes_nothing(own, sample):
    """Merging again adds the adapter again (huggingface/peft PR #1355, merging idempotent)."""
    from interp.model.adapters import merged

    vlm = adapted(own, lora())
    expected = raw_logits(vlm, sample, [50, 55])
    vlm.model.merge_adapter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        vlm.model.merge_adapter()
        assert_exact(vlm, sample)
        whole = replace(vlm, model=merged(vlm.model))
    np.testing.assert_allclose(raw_logits(whole, sample, [50, 55]), expected, atol=1e-3)


def test_a_base_that_peft_changed_in_place_is_told(own, sample):
    """get_peft_model changes the base model in place; whoever holds the base measures the adapter.

    huggingface/peft #932, #940 and PR #2313
    """
    before = assert_exact(own, sample)
    adapted(own, lora())  # `own` still holds the base
    after = assert_exact(own, sample)
    assert float(np.abs(after.logit - before.logit).max()) > 1e-3
    assert after.attrs["adapter_hash"] != before.attrs["adapter_hash"]


@pytest.mark.parametrize(
    "pattern",
    [
        {"alpha_pattern": {"v_proj": 64}},
        {"rank_pattern": {"v_proj": 2}},
        {"alpha_pattern": {"^v_proj": 64}},
        {"use_rslora": True},
        {"layers_to_transform": [1, 4], "layers_pattern": "layers"},
    ],
    ids=str,
)
def test_patterns_of_ranks_and_scales_are_read(own, sample, tmp_path, pattern):
    """Patterns for single modules are not applied, or only on one of two ways.

    huggingface/peft #3582, rank_pattern / alpha_pattern keys that match zero layers are silent
    """
    vlm = adapted(own, lora(**pattern))
    expected = assert_exact(vlm, sample)
    vlm.model.save_pretrained(tmp_path / "an adapter é")
    again = interp.load_model("tiny", adapter=tmp_path / "an adapter é")
    np.testing.assert_allclose(assert_exact(again, sample).logit, expected.logit, atol=1e-4)


def test_two_dora_adapters_are_merged_right_or_not_at_all(own, sample):
    """Two DoRA adapters merge to another model (huggingface/peft #3608)."""
    from interp.model.adapters import NotMerged, merged

    config = lora(target_modules=["v_proj"], use_dora=True)
    vlm = adapted(own, config, name="A")
    vlm.model.add_adapter("B", config)
    shake(vlm.model, 0.2, seed=1)
    vlm.model.base_model.set_adapter(["A", "B"])
    vlm.model.eval()
    expected = raw_logits(vlm, sample, [50, 55])
    try:
        whole = replace(vlm, model=merged(vlm.model))
    except NotMerged:
        return
    np.testing.assert_allclose(raw_logits(whole, sample, [50, 55]), expected, atol=2e-3)


def test_a_disabled_adapter_is_the_base(own, sample):
    """Inside disable_adapter the adapter is measured all the same (huggingface/peft #515)."""
    before = assert_exact(own, sample)
    vlm = adapted(own, lora())
    with vlm.model.disable_adapter():
        inside = assert_exact(vlm, sample)
    np.testing.assert_allclose(inside.logit, before.logit, atol=1e-5)
    assert float(np.abs(assert_exact(vlm, sample).logit - before.logit).max()) > 1e-3


@pytest.mark.parametrize("how", ["pissa", "olora"])
def test_an_adapter_that_changes_its_base_is_loaded_right_or_refused(own, sample, tmp_path, how):
    """PiSSA and OLoRA change the base's weights; their adapter alone is another model.

    huggingface/peft #2184 and #2270, PiSSA Updates Base Model Weights Silently
    """
    vlm = adapted(own, lora(init_lora_weights=how))
    expected = raw_logits(vlm, sample, [50, 55])
    vlm.model.save_pretrained(tmp_path / "a")
    try:
        again = interp.load_model("tiny", adapter=tmp_path / "a")
    except ValueError:
        return
    np.testing.assert_allclose(raw_logits(again, sample, [50, 55]), expected, atol=2e-3)


def test_a_second_adapter_that_is_only_loaded_changes_nothing(own, sample):
    """Adding a second adapter switches the model over (huggingface/peft #1064)."""
    vlm = adapted(own, lora(), name="A")
    before = assert_exact(vlm, sample)
    vlm.model.add_adapter("B", lora(r=8))
    vlm.model.eval()
    np.testing.assert_array_equal(assert_exact(vlm, sample).logit, before.logit)


# ================================================================ nnsight


def test_an_extraction_does_not_depend_on_the_one_before(tiny, samples):
    """Deleting one trace changes what another gives (ndif-team/nnsight #607)."""
    first = interp.extract.effects(tiny, samples[6], **TWO)
    interp.extract.ledger(tiny, samples[1])
    interp.extract.first_order(tiny, samples[2], positions=[50])
    assert interp.extract.effects(tiny, samples[6], **TWO).identical(first)


def test_a_debuggers_trace_function_stays(tiny, sample):
    """Tracing with sys.settrace ends a debugger or a coverage run.

    nnsight traces by frames; pvs-hd-tea/PyTypes PR #162, Restore trace hook previously set
    """
    expected = interp.extract.ledger(tiny, sample, **TWO)

    def trace(_frame, _event, _argument):
        return None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        got = interp.extract.ledger(tiny, sample, **TWO)
        after = sys.gettrace()
    finally:
        sys.settrace(before)
    assert after is trace
    assert got.identical(expected)


def test_code_without_a_source_file_can_extract(tmp_path):
    """nnsight needs the caller's source, which `python -c`, exec and notebooks lack.

    ndif-team/nnsight (source of traced code), here the caller's
    """
    code = (
        "import interp\n"
        'exec(compile(\'vlm = interp.load_model("tiny")\\n'
        's = interp.load_samples("digits", limit=7)[6]\\n'
        "print(float(interp.extract.ledger(vlm, s, positions=[50]).logit[0]))', 'nowhere', 'exec'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=200,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    float(done.stdout.strip().splitlines()[-1])


# ================================================================ TransformerLens


def test_answers_in_a_batch_are_those_alone_whatever_side_is_padded(tiny, samples):
    """Padding is not masked in generation, and batches give other texts.

    TransformerLensOrg/TransformerLens #1005; huggingface/transformers #36100 (padding side)
    """
    pairs = [(s.image, s.question) for s in samples[:4]]
    pairs[1] = (pairs[1][0], pairs[1][1] + " Please look at all of the picture first.")
    alone = [tiny.answer(*pair).token_ids for pair in pairs]
    tokenizer = tiny.processor.tokenizer
    before = tokenizer.padding_side
    tokenizer.padding_side = "right"
    try:
        assert [one.token_ids for one in tiny.answers(pairs)] == alone
    finally:
        tokenizer.padding_side = before


def test_the_last_residual_gives_the_models_logits(tiny, sample):
    """The accumulated residual stream through norm and unembedding is not the logit.

    TransformerLensOrg/TransformerLens #523, Residual Stack Not Adding Up
    """
    ds = interp.extract.residual(tiny, sample, positions=[50, 55])
    last = torch.from_numpy(ds["residual"].sel(component="resid_post").isel(layer=-1).values)
    text = tiny.model.model.language_model
    with torch.no_grad():
        logits = tiny.model.lm_head(text.norm(last))
    batch = prompts.teacher_forced(tiny.processor, sample, None).batch
    with torch.no_grad():
        own = tiny.model(**batch).logits[0, [50, 55]]
    torch.testing.assert_close(logits, own, atol=1e-4, rtol=1e-4)


def test_raw_logits_are_those_of_hugging_face(tiny, sample):
    """Logits differ from Hugging Face's by a constant that nobody mentions.

    TransformerLensOrg/TransformerLens #693 and #223
    """
    batch = prompts.teacher_forced(tiny.processor, sample, None).batch
    with torch.no_grad():
        logits = tiny.model(**batch).logits[0, [50, 55]].double()
    ids = batch["input_ids"][0, [51, 56]]
    raw = logits.gather(1, ids[:, None])[:, 0]
    by_gauge = {
        gauge: interp.extract.ledger(tiny, sample, gauge=gauge, detail="summary", **TWO)["logit"]
        for gauge in ("raw", "centered")
    }
    np.testing.assert_allclose(by_gauge["raw"], raw, atol=1e-4)
    np.testing.assert_allclose(by_gauge["centered"], raw - logits.mean(1), atol=1e-4)


def test_no_token_is_put_before_the_prompt(tiny, sample):
    """A token for the beginning is prepended twice, or where the model has none.

    TransformerLensOrg/TransformerLens #223 (prepend_bos)
    """
    batch = prompts.teacher_forced(tiny.processor, sample, None).batch
    text = prompts.prompt_text(tiny.processor, sample.question, None)
    first = tiny.processor.tokenizer(text, add_special_tokens=False).input_ids[0]
    assert int(batch["input_ids"][0, 0]) == first
    ends = (batch["input_ids"][0] == tiny.processor.tokenizer.eos_token_id).nonzero()[:, 0]
    assert int(ends[-1]) == batch["input_ids"].shape[1] - 1


# ================================================================ captum


def test_undefined_maps_do_not_spoil_the_holistic_one(maps):
    """0 · NaN is NaN: what lies outside of a mask spoils everything.

    meta-pytorch/captum PR #1921, Select perturbed values without arithmetic masking
    """
    assert not maps["is_defined"].sel(kind="bottleneck").all()
    for role in ("answer", "thinking", None):
        got = interp.maps.holistic(maps, "bottleneck", role)
        assert np.isfinite(got).all() and float(got.sum()) > 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_reference_that_is_not_finite_is_refused(tiny, sample, refs, value):
    """A baseline that is not a number becomes an attribution that is none.

    meta-pytorch/captum PR #1920, Validate perturbation baselines before attribution
    """
    embeddings = refs["blur"].embeddings.clone()
    embeddings[3, 5] = value
    with pytest.raises(ValueError, match="NaN|nan|finite|inf"):
        interp.extract.node_effects(
            tiny, sample, references={"mine": embeddings}, sources=["image"], positions=[55]
        )


@pytest.mark.parametrize("wrong", ["short", "long", "narrow", "flat"])
def test_a_reference_of_another_shape_is_refused(tiny, sample, refs, wrong):
    """Too many, too few or too narrow baselines are broadcast or cut (captum PR #1920)."""
    e = refs["blur"].embeddings
    other = {"short": e[:-1], "long": torch.cat([e, e[:1]]), "narrow": e[:, :-1], "flat": e[:, :1]}
    with pytest.raises(ValueError, match="reference"):
        interp.extract.node_effects(
            tiny, sample, references={"mine": other[wrong]}, sources=["image"], positions=[55]
        )


@pytest.mark.parametrize("with_image", [False, True])
def test_a_map_that_is_not_defined_or_zero_is_drawn(maps, sample, with_image):
    """A map without values ends drawing: "Cannot normalize by scale factor = 0".

    meta-pytorch/captum #959
    """
    import matplotlib.pyplot as plt

    options = {"image": sample.image} if with_image else {}
    zero = maps.assign(map=maps["map"] * 0)
    undefined = int(np.flatnonzero(~maps["is_defined"].sel(kind="bottleneck").values)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for ds, target, kind in ((zero, "answer", "direct"), (maps, undefined, "bottleneck")):
            try:
                ax = ds.vlm.plot(target, kind, **options)
            except ValueError as error:
                assert "expected" in str(error)
                continue
            ax.figure.canvas.draw()
            assert all(np.isfinite(one.get_clim()).all() for one in ax.images if one.cmap)
            plt.close("all")
        for pictures in (zero.vlm, maps.vlm):
            ax = pictures.strip("bottleneck")  # noqa: B005
            ax.figure.canvas.draw()
            assert np.isfinite(ax.images[0].get_clim()).all()
            plt.close("all")


def test_how_many_canvases_at_once_changes_nothing(tiny, sample, maps):
    """The result depends on how many perturbations share a forward.

    meta-pytorch/captum #586 / PR #1666 (perturbations_per_eval)
    """
    from interp.faithfulness import faithfulness

    saliency = {"direct": maps.vlm.map("answer", "direct")}
    many, one = (
        faithfulness(tiny, sample, saliency, shares=(0.1, 1.0), at_once=k) for k in (16, 1)
    )
    xr.testing.assert_allclose(many, one, atol=1e-5)
    got = many["log_likelihood"].sel(explainer="direct", share=1.0)
    np.testing.assert_allclose(got.sel(change="deletion"), many["of_blank"], atol=1e-5)
    np.testing.assert_allclose(got.sel(change="insertion"), many["of_original"], atol=1e-5)


def test_the_callers_batch_stays_as_it_is(tiny, sample):
    """Inputs are changed in place, or require gradients afterwards.

    meta-pytorch/captum PR #8, Fixing Input Arguments and Gradient Requirements
    """
    batch = dict(prompts.teacher_forced(tiny.processor, sample, None).batch)
    before = {name: value.clone() for name, value in batch.items()}
    interp.extract.ledger(tiny.model, batch, positions=[50])
    interp.extract.effects(tiny.model, batch, positions=[50], sources={"a": [3]})
    interp.extract.first_order(tiny.model, batch, positions=[50], n_nodes=2)
    assert list(batch) == list(before)
    for name, value in batch.items():
        assert torch.equal(value, before[name]) and not value.requires_grad
        assert value.grad is None


@pytest.mark.parametrize(
    "name", ["Grad-CAM", "input × gradient", "integrated gradients", "AttnLRP"]
)
def test_gradients_are_there_without_a_callers_leave(tiny, sample, name):
    """Under torch.no_grad gradients are missing (meta-pytorch/captum PR #324)."""
    from interp.attribution import METHODS

    last = len(prompts.teacher_forced(tiny.processor, sample, None).tokens.targets()) - 1
    expected = METHODS[name](tiny, sample, last)
    with torch.no_grad():
        got = METHODS[name](tiny, sample, last)
    np.testing.assert_allclose(got, expected, atol=1e-6 * float(abs(expected).max()))


@pytest.mark.parametrize("share", [5, -0.05, float("nan"), 1.5])
def test_a_share_that_is_none_is_refused(tiny, sample, maps, share):
    """A value outside of its range is taken, and something else is computed.

    meta-pytorch/captum PR #1922 (Validate perturbation feature masks); here 5 for 5 %
    """
    from interp.faithfulness import faithfulness

    with pytest.raises(ValueError, match="share"):
        faithfulness(tiny, sample, {"d": maps.vlm.map("answer", "direct")}, shares=(share,))


# ================================================================ transformers


def test_a_processor_saved_after_use_is_the_same(tiny, samples, tmp_path):
    """Calling a tokenizer changes it, and what is saved afterwards truncates or pads.

    huggingface/transformers #24441, Calling the tokenizer modifies the tokenizer object
    """
    from transformers import AutoProcessor

    texts = ["one", "one two three four five six seven"]
    expected = tiny.processor.tokenizer(texts).input_ids
    tiny.answers([(s.image, s.question) for s in samples[:3]], max_new_tokens=3)
    interp.extract.ledger(tiny, samples[0], detail="summary")
    tiny.processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert again.tokenizer(texts).input_ids == expected
    assert again.image_processor.size == tiny.processor.image_processor.size


def test_a_truncation_of_before_cuts_nothing(tiny, sample):
    """A truncation that somebody asked for once stays with the tokenizer and cuts later texts.

    vllm-project/llm-compressor PR #2917 and huggingface/transformers #24441
    """
    expected = interp.extract.ledger(tiny, sample, detail="summary")
    tokenizer = tiny.processor.tokenizer
    tokenizer("one two three four five", truncation=True, max_length=3, padding="max_length")
    try:
        assert interp.extract.ledger(tiny, sample, detail="summary").identical(expected)
    finally:
        tokenizer._tokenizer.no_truncation()
        tokenizer._tokenizer.no_padding()


@pytest.mark.parametrize("kind", ["lists", "numpy"])
def test_a_batch_without_tensors_is_refused_in_words(tiny, sample, kind):
    """Without return_tensors="pt": 'list' object has no attribute 'to'.

    huggingface/transformers #38341 and #38393
    """
    batch = prompts.teacher_forced(tiny.processor, sample, None).batch
    other = {k: v.tolist() if kind == "lists" else v.numpy() for k, v in batch.items()}
    with pytest.raises(ValueError, match="tensor"):
        interp.extract.ledger(tiny.model, other, positions=[50])


def test_spaces_before_punctuation_stay(tiny):
    """Decoding takes spaces before punctuation away.

    huggingface/transformers #32575 and #25840 (clean_up_tokenization_spaces)
    """
    tokenizer = tiny.processor.tokenizer
    text = "a , b . c ' d 's ? !"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert completion_of(tokenizer, [*ids, tokenizer.eos_token_id]).text == text


@pytest.mark.parametrize("size", [(31, 639), (639, 31), (690, 15420), (1, 1), (199, 1)])
def test_thin_images_are_counted_as_they_are_read(tiny, sample, size, tmp_path):
    """A thin image under few pixels is scaled to a side of 0.

    QwenLM/Qwen3-VL #1145 / PR #2121, huggingface/transformers PR #37264
    """
    Image.new("RGB", size, "red").save(tmp_path / "a.png")
    odd = Sample("a", tmp_path / "a.png", sample.question, "red")
    size_before = tiny.processor.image_processor.size
    tiny.processor.image_processor.size = type(size_before)(
        shortest_edge=4 * 28 * 28, longest_edge=20 * 28 * 28
    )
    try:
        n_tokens = len(prompts.teacher_forced(tiny.processor, odd, None).tokens.ids)
        assert prompts.count_tokens(tiny.processor, odd, None) == n_tokens
    finally:
        tiny.processor.image_processor.size = size_before


@pytest.mark.parametrize("dtype", ["bf16", "half precision", "torch.bfloat16", "int8", "float16"])
def test_a_dtype_that_is_none_is_refused_in_words(dtype):
    """module 'torch' has no attribute 'torch.bfloat16'.

    NielsRogge/Transformers-Tutorials #380; huggingface/transformers PR #13209 (torch_dtype)
    """
    try:
        vlm = interp.load_model("tiny", dtype=dtype)
    except ValueError as error:
        assert "dtype" in str(error) or "float32" in str(error)
        return
    assert str(vlm.model.dtype).endswith(dtype.removeprefix("torch."))


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_gpu_that_is_not_there_is_one_line(tmp_path):
    """`--device cuda` without a GPU is a traceback (AssertionError: Torch not compiled with CUDA).

    agiresearch/AIOS #14 (transformers), pytorch/pytorch #28111; README's command has --device cuda
    """
    with pytest.raises(ValueError, match="cuda"):
        interp.load_model("tiny", device="cuda")


@pytest.mark.parametrize(
    "setting",
    [{"use_cache": False}, {"output_hidden_states": True}],
    ids=str,
)
def test_settings_of_the_config_change_nothing(own, sample, setting):
    """A flag in the config (of training, say) changes what a forward returns.

    huggingface/transformers #7638 and PR #45277 (config.return_dict)
    """
    expected = {
        name: getattr(interp.extract, name)(own, sample, **TWO) for name in ("ledger", "effects")
    }
    said = own.answer(sample.image, sample.question, max_new_tokens=40)
    for config in (own.model.config, own.model.config.text_config):
        for name, value in setting.items():
            setattr(config, name, value)
    for name, ds in expected.items():
        np.testing.assert_allclose(
            getattr(interp.extract, name)(own, sample, **TWO)[
                "magnitude" if name == "ledger" else "total"
            ],
            ds["magnitude" if name == "ledger" else "total"],
            atol=1e-5,
        )
    assert own.answer(sample.image, sample.question, max_new_tokens=40) == said


def test_settings_of_generation_come_back(own, sample):
    """Generation leaves another generation config behind, also after an error.

    huggingface/trl #5783 (generation_config of the model against the caller's)
    """
    config = own.model.generation_config
    config.top_k, config.do_sample, config.temperature = 7, True, 0.3
    before = config.to_dict()
    own.answer(sample.image, sample.question, max_new_tokens=2)
    with pytest.raises(ValueError):
        own.answer(sample.image, "a <|im_end|> b")
    with pytest.raises(ValueError):
        own.answer(sample.image, sample.question, max_new_tokens=-1)
    assert own.model.generation_config is config
    assert config.to_dict() == before


# ================================================================ TRL


@pytest.mark.parametrize("prompt", ["plain", "think"])
def test_what_is_trained_is_what_is_explained(tiny, samples, prompt):
    """The collator's tokens are others than those of generation and measuring.

    huggingface/trl #4289 (image tokens do not match) and #4189 (collator of prompt and completion)
    """
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    from interp.model.vlm import PROMPTS
    from train.rows import texts

    rows = texts(3, samples.__getitem__, PROMPTS[prompt])
    collator = DataCollatorForVisionLanguageModeling(tiny.processor, completion_only_loss=True)
    batch = collator([rows[k] for k in range(3)])
    for k in range(3):
        made = prompts.teacher_forced(tiny.processor, samples[k], PROMPTS[prompt])
        ids = batch["input_ids"][k][batch["attention_mask"][k].bool()].tolist()
        expected = made.batch["input_ids"][0].tolist()
        assert ids[: len(expected)] == expected
        learned = batch["labels"][k][batch["labels"][k] >= 0].tolist()
        text = prompts.text_ids(tiny.processor, samples[k])
        assert learned[: len(text)] == text


def test_no_rows_are_no_crash(tiny):
    """An empty data set ends in IndexError (huggingface/trl, empty dataset after filtering)."""
    from train.usable import usable

    try:
        kept = usable([])
    except ValueError as error:
        assert "expected" in str(error)
    else:
        assert kept == []


# ================================================================ surroundings (own)


def test_edited_weights_have_another_hash_in_both_call_forms(own, sample):
    """Ordinary writes to weights are noticed; the stored hash is not the loaded one's."""
    batch = prompts.teacher_forced(own.processor, sample, None).batch
    before = interp.extract.ledger(own, sample, detail="summary", **TWO)
    with torch.no_grad():
        own.model.lm_head.weight[5] += 1.0
    after = interp.extract.ledger(own, sample, detail="summary", **TWO)
    bare = interp.extract.ledger(own.model, batch, detail="summary", **TWO)
    assert bare.attrs["model_hash"] != before.attrs["model_hash"]
    assert after.attrs["model_hash"] == bare.attrs["model_hash"]


def test_warnings_as_errors_are_no_errors(tiny, sample, refs):
    """`python -W error`: a library's own warnings end the program."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        interp.extract.ledger(tiny, sample)
        interp.extract.effects(tiny, sample)
        interp.extract.maps(tiny, sample, kinds=("direct", "bottleneck", "two_hop", "effect"))
        interp.extract.shapley(tiny, sample, references=refs, positions=[55])
        interp.extract.origins(tiny, sample, **TWO)


def test_strict_floating_point_is_no_error(tiny, sample, maps):
    """np.seterr(all="raise") of a caller ends in FloatingPointError."""
    with np.errstate(divide="raise", over="raise", invalid="raise"):
        interp.extract.effects(tiny, sample)
        interp.maps.alignment.alignment(maps.vlm.map(kind="holistic"), sample.boxes)
        zero = maps.vlm.map("answer", "direct") * 0
        interp.maps.alignment.alignment(zero, sample.boxes)


def test_deterministic_algorithms_are_enough(tiny, sample):
    """torch.use_deterministic_algorithms(True) refuses an operation."""
    torch.use_deterministic_algorithms(True)
    try:
        interp.extract.effects(tiny, sample, **TWO)
        interp.extract.first_order(tiny, sample, positions=[55], n_nodes=2)
        interp.extract.patch_effects(tiny, sample, positions=[55])
    finally:
        torch.use_deterministic_algorithms(False)


def test_what_people_send_to_other_processes_can_be_pickled(tiny, sample):
    """A loaded model, a sample and a text cross to another process and back."""
    text = tiny.answer(sample.image, sample.question)
    vlm, one, same = pickle.loads(pickle.dumps((tiny, sample, text)))
    assert same == text
    got = interp.extract.ledger(vlm, one, completion=same, detail="summary")
    assert got.identical(interp.extract.ledger(tiny, sample, completion=text, detail="summary"))


def test_a_model_loaded_in_inference_mode_has_gradients(sample):
    """Weights made in inference mode cannot be differentiated through later."""
    with torch.inference_mode():
        vlm = interp.load_model("tiny")
    interp.extract.first_order(vlm, sample, positions=[55], n_nodes=2)
    interp.extract.effects(vlm, sample, **TWO)


def test_plots_leave_the_callers_style(maps):
    """Drawing one map changes all later figures of a notebook."""
    import matplotlib.pyplot as plt

    before = dict(plt.rcParams)
    maps.vlm.plot("answer", "direct")
    maps.vlm.strip("direct")
    plt.close("all")
    assert {k: v for k, v in plt.rcParams.items() if before[k] != v} == {}


@pytest.mark.parametrize("kind", ["path", "bytes", "rgba", "cmyk", "deep"])
def test_a_samples_image_of_any_kind_can_be_drawn_over(maps, sample, tmp_path, kind):
    """README: ms.vlm.plot(…, image=sample.image); samples from files hold a path or bytes."""
    import matplotlib.pyplot as plt

    sample.image.save(tmp_path / "a.png")
    made = {
        "path": lambda: tmp_path / "a.png",
        "bytes": (tmp_path / "a.png").read_bytes,
        "rgba": lambda: sample.image.convert("RGBA"),
        "cmyk": lambda: sample.image.convert("CMYK"),
        "deep": lambda: Image.fromarray(
            np.asarray(sample.image.convert("L")).astype(np.uint16) * 257
        ),
    }[kind]()
    expected = maps.vlm.plot("answer", "direct", image=sample.image).images[0].get_array()
    got = maps.vlm.plot("answer", "direct", image=made).images[0].get_array()
    plt.close("all")
    assert np.abs(np.asarray(got) - np.asarray(expected)).max() < 0.05


def test_transparent_pixels_hide_what_is_below_in_drawings(maps, sample):
    """The model sees transparency as white; the overlay shows the colours that lie under it."""
    import matplotlib.pyplot as plt

    image = Image.new("RGBA", sample.image.size, (0, 0, 0, 0))
    drawn = maps.vlm.plot("answer", "direct", image=image).images[0].get_array()
    plt.close("all")
    assert np.allclose(drawn, 1.0)  # as `open_image`: white


@pytest.mark.parametrize("limit", [None, 10])
def test_a_callers_limit_on_pixels_is_one_line_at_most(monkeypatch, limit):
    """Image.MAX_IMAGE_PIXELS of the program is None or tiny."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    content = png(Image.new("RGB", (64, 64), "red"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert colour(open_image(content)) == (255, 0, 0)
        except ValueError as error:
            assert limit == 10 and "\n" not in str(error)


@pytest.mark.parametrize("kind", ["folder", "fifo-like", "dangling link", "device"])
def test_what_is_no_file_is_refused_in_one_line(tmp_path, kind):
    """An image that is a folder, a dead link or a device."""
    path = tmp_path / "a.png"
    if kind == "folder":
        path.mkdir()
    elif kind == "dangling link":
        path.symlink_to(tmp_path / "gone.png")
    elif kind == "device":
        path = Path("/dev/null")
    else:
        path.write_bytes(b"\x00" * 10)
    with pytest.raises(ValueError, match="expected a readable image file") as caught:
        open_image(path)
    assert "\n" not in str(caught.value)


def test_animations_are_their_first_frame_however_they_lie(tmp_path):
    """An animated PNG or WebP, as file and as an image that was moved on."""
    frames = [Image.new("RGB", (32, 32), name) for name in ("red", "lime", "blue")]
    for form in ("PNG", "WEBP", "GIF"):
        path = tmp_path / f"a.{form.lower()}"
        options = {"lossless": True} if form == "WEBP" else {}
        frames[0].save(path, form, save_all=True, append_images=frames[1:], **options)
        assert colour(open_image(path)) == (255, 0, 0), form


# ================================================================ odd rows (own)


@pytest.mark.parametrize("name", ["a b", "ünï 图", "data[v2]", "a:b", "%41", "-x", "'q'"])
def test_a_jsonl_folder_of_any_name_is_read(tmp_path, name):
    """Spaces, colons, brackets, percent signs and quotes in a folder's name."""
    assert len(interp.load_samples(write_rows(tmp_path / name, [ROW]))) == 1


@pytest.mark.parametrize("limit", [0, -1, -5])
def test_a_limit_that_is_none_is_refused_or_gives_none(tmp_path, limit):
    """--limit 0 and --limit -1: no row, or an error that speaks of the limit; never all rows."""
    data = write_rows(tmp_path / "data", [ROW | {"id": str(k)} for k in range(4)])
    try:
        got = interp.load_samples(data, limit=limit)
    except ValueError as error:
        assert "limit" in str(error)
        return
    assert got == []


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({"family": 3}, True),
        ({"family": None}, True),
        ({"id": 7}, True),
        ({"id": "हिन्दी"}, True),
        ({"id": "e\u0301"}, True),
        ({"boxes": [["0.1", "0.1", "0.5", "0.5"]]}, None),
        ({"boxes": [[False, False, True, True]]}, None),
        ({"answer": 3}, None),
        ({"thinking": ""}, True),
        ({"question": ""}, None),
    ],
    ids=str,
)
def test_odd_fields_cost_nothing_or_the_row(tmp_path, change, kept):
    """Numbers as families and ids, decomposed and Indic letters in ids, truth values as boxes."""
    data = write_rows(tmp_path / "data", [ROW | change, ROW | {"id": "last"}])
    got = interp.load_samples(data)
    assert got[-1].id == "last"
    if kept is not None:
        assert (len(got) == 2) is kept


def test_rows_of_a_windows_editor_are_read(tmp_path):
    """CRLF, blank lines and a last line without an end."""
    write_rows(tmp_path / "data", [])
    text = "\r\n\r\n".join(json.dumps(ROW | {"id": str(k)}) for k in range(3))
    (tmp_path / "data" / "test.jsonl").write_bytes(text.encode())
    assert [s.id for s in interp.load_samples(f"jsonl:{tmp_path / 'data'}")] == ["0", "1", "2"]


def test_a_data_set_named_by_a_path_is_taken_or_refused_in_words():
    """load_model and open_run take a Path; load_samples(Path("digits")) ends in AttributeError."""
    try:
        got = interp.load_samples(Path("digits"), limit=1)
    except ValueError as error:
        assert "expected a data set" in str(error)
    else:
        assert len(got) == 1


# ================================================================ odd texts (own)


def test_two_samples_are_never_one():
    """Question and text are joined before they are hashed: where one ends does not show."""
    image = Image.new("RGB", (56, 56), "red")
    one = Sample("a", image, "What?\nred", "blue")
    other = Sample("a", image, "What?", "red\nblue")
    assert one.fingerprint != other.fingerprint


def test_a_changed_twin_is_another_sample(samples):
    """Node effects read the twin; a hash that leaves it out resumes with other references."""
    one = samples[6]
    other = replace(one, twin=samples[1].twin)
    assert one.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    "answer",
    [
        " red ",
        "\tred\n",
        "re\u2028d",
        "{{ 1 + 1 }}",
        "red\r\nblue",
        "\u200bred",
        "ﬁ",
        "İ",
        "a" * 3000,
    ],
    ids=lambda a: repr(a)[:12],
)
def test_tokens_of_an_answer_spell_it(tiny, sample, answer):
    """White space, templates, separators, ligatures: the explained tokens are the answer's."""
    odd = replace(sample, answer=answer)
    made = prompts.teacher_forced(tiny.processor, odd, None)
    from interp.inputs.spelling import token_bytes

    ids = [
        int(made.tokens.ids[i]) for i in made.tokens.targets() if made.tokens.role[i] == "answer"
    ]
    spelled = b"".join(token_bytes(tiny.processor.tokenizer, ids)).decode()
    assert spelled.strip() == answer.strip()


@pytest.mark.parametrize(
    "question", ["", " ", "{{ messages }}", "{% raw %}", "<image>", "\x00", "<think>\nx\n</think>"]
)
def test_questions_that_look_like_templates_are_text(tiny, sample, question):
    """A question is text: nothing in it is run, and the image stays one."""
    odd = replace(sample, question=question)
    made = prompts.teacher_forced(tiny.processor, odd, None)
    assert question.strip() in tiny.processor.tokenizer.decode(made.tokens.ids)
    expected = prompts.teacher_forced(tiny.processor, sample, None)
    assert made.tokens.role.count("image") == expected.tokens.role.count("image")
    assert made.tokens.role.count("answer") == expected.tokens.role.count("answer")
    assert made.tokens.role.count("thinking") == expected.tokens.role.count("thinking")


# ================================================================ odd arguments (own)


@pytest.mark.parametrize("positions", ["tensor", "array", "range", "generator", "uint8"])
def test_positions_of_the_residual_stream_of_any_make(tiny, sample, positions):
    """residual(positions=…) as ledger(positions=…): tensors, arrays, ranges, generators."""
    made = {
        "tensor": torch.tensor([50, 51]),
        "array": np.array([50, 51]),
        "range": range(50, 52),
        "generator": (k for k in (50, 51)),
        "uint8": np.array([50, 51], np.uint8),
    }[positions]
    expected = interp.extract.residual(tiny, sample, positions=[50, 51])
    got = interp.extract.residual(tiny, sample, positions=made)
    np.testing.assert_array_equal(got["residual"], expected["residual"])
    assert got["position"].values.tolist() == [50, 51]


@pytest.mark.parametrize("wrong", [[True, False], [50.0], [50.9], "50", 50, ["50"], [[50]], [None]])
def test_positions_of_the_residual_stream_that_are_none_are_refused(tiny, sample, wrong):
    """A mask is no list of rows there either."""
    with pytest.raises(ValueError, match="position"):
        interp.extract.residual(tiny, sample, positions=wrong)


def test_a_mask_as_long_as_the_text_is_no_list_of_rows(tiny, sample):
    """residual(positions=mask)."""
    n = len(prompts.teacher_forced(tiny.processor, sample, None).tokens.ids)
    with pytest.raises(ValueError, match="position"):
        interp.extract.residual(tiny, sample, positions=np.arange(n) == 50)


@pytest.mark.parametrize(
    "make", [tuple, list, iter, np.array, lambda v: (x for x in v), dict.fromkeys]
)
def test_source_sets_of_any_make(tiny, sample, make):
    """sources= is an Iterable of names: generators and arrays, too; a dict needs its rows."""
    names = ["image", "question"]
    sources = make(names)
    if isinstance(sources, dict):
        sources = sources.keys()
    got = interp.extract.effects(tiny, sample, sources=sources, **TWO)
    assert got["source_set"].values.tolist() == names


def test_source_sets_of_a_generator_in_batches(tiny, samples):
    """The same through `each`, which looks at them for each sample, and to estimate memory."""
    own = {"sources": (name for name in ["image", "question"]), **TWO}
    (got,) = interp.extract.each("effects", tiny, [(samples[0], own)])
    assert got["source_set"].values.tolist() == ["image", "question"]
    shared = (name for name in ["image", "question"])
    for got in interp.extract.each("effects", tiny, samples[:2], sources=shared):
        assert got["source_set"].values.tolist() == ["image", "question"]


@pytest.mark.parametrize("kinds", [["direct", "bottleneck"], iter(["direct", "bottleneck"])])
def test_kinds_of_maps_of_any_make(tiny, sample, kinds):
    """kinds= as a list or an iterator."""
    got = interp.extract.maps(tiny, sample, kinds=kinds, max_targets=2)
    assert got["kind"].values.tolist() == ["direct", "bottleneck"]


@pytest.mark.parametrize(
    "options",
    [
        {"kinds": "direct"},
        {"kinds": ()},
        {"max_targets": 0},
        {"max_targets": -1},
        {"only": [0, 0]},
        {"only": [-1]},
        {"only": [True, False]},
        {"only": []},
        {"kinds": ("effect",), "n_nodes": -2},
        {"variant": "Paper"},
    ],
    ids=str,
)
def test_questions_for_maps_that_are_none_are_refused(tiny, sample, options):
    """Options of maps that mean nothing, or two things."""
    if options == {"only": [0, 0]}:
        try:
            got = interp.extract.maps(tiny, sample, **options)
        except ValueError:
            return
        assert got.sizes["kind" if "kinds" in options else "target"] == 2
        return
    with pytest.raises(ValueError, match="expected"):
        interp.extract.maps(tiny, sample, **options)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("--batch-size", "0"), ("--batch-size", "-1"), ("--shard-size", "0"),
        ("--shard-size", "-2"), ("--threads", "0"), ("--max-memory", "inf"),
    ],
)  # fmt: skip
def test_numbers_of_a_command_that_mean_nothing_are_refused(name, arguments, capsys):
    """A command whose --batch-size is 0 runs, certifies, and ends with "range() arg 3 …"."""
    from analyses import options

    with pytest.raises(SystemExit) as caught:
        options.parse(options.DirectVsIndirectReport, "", [f"{name}={arguments}"])
    assert caught.value.code == 2


@pytest.mark.parametrize("foils", [iter([3, 4]), np.array([3, 4]), torch.tensor([3, 4]), (3, None)])
def test_foils_of_any_make(tiny, sample, foils):
    """foils= as an iterator, an array, a tensor, or with a gap."""
    got = interp.extract.ledger(
        tiny, sample, gauge="contrast", foils=foils, detail="summary", **TWO
    )
    assert float(np.abs(got.remainder / got.magnitude).max()) < 1e-5


def test_no_questions_have_no_answers(tiny):
    """vlm.answers([])."""
    assert tiny.answers([]) == []


def test_questions_of_a_generator_are_answered(tiny, samples):
    """vlm.answers(generator)."""
    pairs = [(s.image, s.question) for s in samples[:2]]
    assert tiny.answers((p for p in pairs), max_new_tokens=4) == tiny.answers(
        pairs, max_new_tokens=4
    )


@pytest.mark.parametrize("number", ["bool mask", "float mask"])
def test_numbers_of_the_batch_of_any_make(tiny, sample, number):
    """An attention mask of truth values or floats (ids in 32 bits fail in transformers itself)."""
    batch = dict(prompts.teacher_forced(tiny.processor, sample, None).batch)
    expected = interp.extract.ledger(tiny.model, batch, detail="summary", **TWO)
    kind = torch.bool if number == "bool mask" else torch.float32
    batch["attention_mask"] = batch["attention_mask"].to(kind)
    got = interp.extract.ledger(tiny.model, batch, detail="summary", **TWO)
    np.testing.assert_allclose(got["logit"], expected["logit"], atol=1e-6)


# ================================================================ odd adapters (own)


def test_an_adapter_without_effect_is_the_base(own, sample):
    """A fresh LoRA (B = 0) changes no number."""
    before = assert_exact(own, sample)
    model = peft.get_peft_model(own.model, lora()).eval()
    after = assert_exact(replace(own, model=model), sample)
    np.testing.assert_allclose(after.logit, before.logit, atol=1e-6)


def test_a_scale_that_is_turned_is_followed(own, sample):
    """set_scale: the strength of an adapter is changed in place, also below zero."""
    vlm = adapted(own, lora(target_modules=["v_proj", "o_proj"]))
    hashes = set()
    for scale in (1.0, -2.0, 0.0):
        for module in vlm.model.modules():
            if hasattr(module, "set_scale"):
                module.set_scale("default", scale)
        hashes.add(assert_exact(vlm, sample).attrs["adapter_hash"])
    assert len(hashes) == 3


def test_an_adapter_on_the_vision_tower_is_read(own, sample):
    """LoRA on the vision tower's qkv alone."""
    before = assert_exact(own, sample)
    vlm = adapted(own, lora(target_modules=r".*visual.*(qkv|proj)"), scale=0.2)
    after = assert_exact(vlm, sample)
    assert float(np.abs(after.logit - before.logit).max()) > 1e-4


@pytest.mark.parametrize(
    "form", ["spaces", "unicode", "relative", "trailing slash", "link", "Path"]
)
def test_an_adapter_at_any_path_is_loaded(own, sample, tmp_path, monkeypatch, form):
    """Spaces, letters, relative paths, slashes and links in the path of an adapter."""
    vlm = adapted(own, lora())
    expected = raw_logits(vlm, sample, [50, 55])
    folder = tmp_path / {"spaces": "an adapter", "unicode": "ünï 图"}.get(form, "a")
    vlm.model.save_pretrained(folder)
    name = str(folder)
    if form == "relative":
        monkeypatch.chdir(tmp_path)
        name = "./a"
    elif form == "trailing slash":
        name += "/"
    elif form == "link":
        (tmp_path / "link").symlink_to(folder)
        name = str(tmp_path / "link")
    elif form == "Path":
        name = folder
    again = interp.load_model("tiny", adapter=name)
    np.testing.assert_allclose(raw_logits(again, sample, [50, 55]), expected, atol=1e-4)


def test_an_adapter_of_nan_is_refused(own, sample):
    """An adapter whose training went wrong: NaN in lora_B."""
    vlm = adapted(own, lora())
    with torch.no_grad():
        for name, parameter in vlm.model.named_parameters():
            if "layers.3" in name and "lora_B" in name:
                parameter.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        interp.extract.ledger(vlm, sample, **TWO)
