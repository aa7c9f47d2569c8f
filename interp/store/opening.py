"""A run on disk: shards of labelled arrays that manifests confirm, and their opening.

    RUN/manifest.json            schema, settings, which samples each shard holds, attributes
    RUN/shards/NNNNN.zarr        Zarr v3, every chunk with a checksum
    RUN/shards/NNNNN.json        confirms that shard: its digest, and what became of each sample
    RUN/images/SAMPLE.png        the resized image that the model saw, so that overlays redraw

`interp.store.writing` writes it. What is not confirmed, byte for byte, is not opened: a missing
chunk would read as zeros, and most single-bit flips in an unchecked chunk as wrong numbers, both
without a word.
"""

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
import xarray as xr
from scipy.io import netcdf_file

from interp.data.sample import is_file_name
from interp.store.joining import join

SCHEMA = 4
CHECKS = ("bytes", "structure")


class Empty(ValueError):
    """A run without one sample that could be measured."""

    def __init__(self, path: Path, attributes: dict):
        super().__init__(f"{path}: expected a sample that could be measured, got none")
        self.attributes = attributes


def shard_path(run: Path, number: int) -> Path:
    """Where a shard lies."""
    return run / "shards" / f"{number:05d}.zarr"


def read_manifest(path: Path) -> dict:
    """The manifest of a run.

    Raises:
        ValueError: none, or of another schema.
    """
    manifest = path / "manifest.json"
    if not manifest.is_file():
        hint = "; a dataset of one call opens with xarray.open_dataset" if path.is_file() else ""
        raise ValueError(f"{path}: expected a run with a manifest.json, got none{hint}")
    try:
        content = json.loads(manifest.read_text())
    except ValueError as error:
        raise ValueError(
            f"{manifest}: expected JSON, got {error}; extract the run again"
        ) from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise ValueError(f"{path}: expected schema {SCHEMA}, got {schema}; extract the run again")
    return content


def open_run(path: str | Path, *, check: str = "bytes", partial: bool = False) -> xr.Dataset:
    """All shards of a run as one dataset, joined along sample and target.

    Where dask is installed, all but labels and facts of samples is read when it is used.
    Attributes: settings, provenance, and of every sample its status.

    Args:
        path: of the run, or of the report's folder that it lies in.
        check: "bytes" reads every file and compares; "structure" compares names, sizes and
            metadata, and leaves a chunk's content to its checksum, which is tested on reading.
        partial: open what is confirmed of a run that is not finished.

    Raises:
        ValueError: no manifest, another schema, an unfinished run, no sample in it, shards that do
            not belong together, or one that is not what its manifest confirms, naming it.
    """
    path = Path(path)
    if check not in CHECKS:
        raise ValueError(f"expected check= one of {CHECKS}, got {check!r}")
    inner = path / "run"
    if (inner / "manifest.json").is_file():
        path = inner
    manifest = read_manifest(path)
    if manifest["attributes"] is None and not partial:
        raise ValueError(
            f"{path}: expected a finished run, got one that was cut off; go on with --resume, or "
            "pass partial=True"
        )
    confirmations = {}
    for number, samples in enumerate(manifest["shards"]):
        confirmation = _confirmation(path, number, samples, check, partial)
        if confirmation is not None:
            confirmations[number] = confirmation
    attributes = manifest["settings"] | manifest["facts"]
    attributes |= _together(path, list(confirmations.values()))
    with quiet():
        opened = [
            xr.open_zarr(shard_path(path, number), consolidated=False, chunks=_chunks())
            for number, confirmation in confirmations.items()
            if "bytes" in confirmation
        ]
    if not opened:
        raise Empty(path, attributes)
    dataset = _with_labels(join(opened))
    dataset.attrs = attributes | (manifest["attributes"] or {})
    return dataset


def _with_labels(dataset: xr.Dataset) -> xr.Dataset:
    """Loads the labels into memory; they are small, and dask does not group by itself."""
    for name, array in dataset.variables.items():
        if array.dims == ("sample",) or (name in dataset.coords and array.ndim <= 1):
            dataset[name].load()
    return dataset


def _confirmation(path: Path, number: int, samples: list, check: str, partial: bool) -> dict | None:
    """The confirmation of a shard; None for one that an unfinished run has not come to."""
    store = shard_path(path, number)
    file = store.with_suffix(".json")
    if not file.is_file() and partial:
        return None
    try:
        confirmation = json.loads(file.read_text())
        fault = fault_of(path, number, confirmation, check)
        fault = fault or (None if confirmation["samples"] == samples else "other samples")
    except (OSError, ValueError, KeyError, TypeError):
        fault = "no confirmation that can be read"
    if fault is not None:
        raise ValueError(
            f"{path}: expected shard {store.name} as the manifest confirms it, got {fault}; "
            "extract these samples again with --resume"
        )
    return confirmation


def fault_of(path: Path, number: int, confirmation: dict, check: str) -> str | None:
    """The fault of a shard in words; None where it is sound."""
    store = shard_path(path, number)
    if "bytes" not in confirmation:
        return None
    if not store.is_dir():
        return "none"
    return None if digest(store, check) == confirmation[check] else "other bytes"


def _together(path: Path, confirmations: list[dict]) -> dict:
    """Attributes that all shards share, and what each says of its samples and of itself."""
    facts = {"statuses": {}, "data_hashes": {}, "reasons": {}, "reduced": {}, "codes": {}}
    shared: dict = {}
    for confirmation in confirmations:
        for name in facts:
            facts[name] |= confirmation.get(name, {})
        for key, value in confirmation.get("attributes", {}).items():
            if shared.setdefault(key, value) != value:
                raise ValueError(
                    f"{path}: expected shards with one {key}, got {shared[key]!r} and {value!r}; "
                    "extract the run again"
                )
    hashes = "".join(sorted(facts["data_hashes"].values()))
    facts["data_hash"] = sha256(hashes.encode()).hexdigest()[:16]
    return shared | facts | {"code": ", ".join(sorted(facts.pop("codes")))}


def image_path(run: str | Path, sample: str) -> Path:
    """Where the resized image of a sample lies.

    Raises:
        ValueError: an id that would leave the folder.
    """
    if not is_file_name(sample):
        raise ValueError(f"expected a sample id of letters, digits and . _ -, got {sample!r}")
    return Path(run) / "images" / f"{sample}.png"


def _of_files() -> set[str]:
    """Names that scipy's file object has for itself: it keeps the data's attributes beside them."""
    return set(dir(netcdf_file(BytesIO(), "w")))


def to_netcdf(dataset: xr.Dataset, path: str | Path) -> None:
    """A dataset, of one sample say, as NetCDF (version 3, which every reader has).

    Attributes that NetCDF cannot hold (lists of records, None, truth values, whole numbers beyond
    32 bits) become JSON text, and arrays of such whole numbers floats of 64 bits. An attribute that
    has the name of one of the file's own (mode) gets an underscore behind it.

    Raises:
        ValueError: numbers that 64-bit floats do not hold either; nothing is written then.
    """
    taken = _of_files()
    attributes = {f"{k}_" if k in taken else k: v for k, v in dataset.attrs.items()}
    dataset = dataset.drop_attrs(deep=False)
    dataset = dataset.assign_attrs({k: _as_attribute(v) for k, v in attributes.items()})
    for name, array in dataset.variables.items():
        is_wide = array.dtype.kind in "iu" and array.size and int(abs(array).max()) >= 2**31
        if is_wide:
            wide = array.astype("float64")
            if not bool((wide.astype(array.dtype) == array).all()):
                raise ValueError(f"{name}: expected whole numbers below 2**53, got larger ones")
            dataset = dataset.assign({name: wide})
    dataset.to_netcdf(path, engine="scipy")


def _as_attribute(value):
    """A value as NetCDF has attributes: text, a float, or a whole number of 32 bits."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    is_small = type(value) is int and abs(value) < 2**31
    return value if is_small or type(value) in (str, float) else json.dumps(value, default=str)


def write_json(path: Path, content: dict) -> None:
    """Writes a JSON file in one step: a reader sees the old one or the new one."""
    aside = path.with_suffix(".part")
    with aside.open("w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


@contextmanager
def quiet() -> Iterator[None]:
    """Without zarr's warnings about what format 3 has not settled."""
    with warnings.catch_warnings():
        # zarr warns that its string type has no settled specification in format 3 yet.
        warnings.filterwarnings("ignore", message=".*Zarr V3 specification.*")
        yield


def _chunks():
    return {} if find_spec("dask") else None


def digest(folder: Path, check: str) -> str:
    """Digest over all files' names and sizes and the metadata; with "bytes", over all content."""
    hasher = sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        hasher.update(f"{file.relative_to(folder)}:{file.stat().st_size}\n".encode())
        if check == "bytes" or file.name == "zarr.json":
            hasher.update(file.read_bytes())
    return hasher.hexdigest()
