"""A run on disk: shards of labelled arrays that manifests confirm, and their opening.

    RUN/manifest.json            schema, settings, which samples each shard holds, attributes
    RUN/shards/NNNNN.zarr        Zarr v3, every chunk with a checksum
    RUN/shards/NNNNN.json        confirms that shard: its digest, and what became of each sample
    RUN/images/SAMPLE.png        the resized image that the model saw, so that overlays redraw

A shard is written aside and renamed into place, then confirmed in one step. What is not confirmed,
byte for byte, is not opened: a missing chunk would read as zeros, and most single-bit flips in an
unchecked chunk as wrong numbers, both without a word. Shards are a fixed list of samples each, so
several processes may write one run, each its own shards, and a run that was cut off goes on.
"""

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fcntl import LOCK_EX, LOCK_NB, flock
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import xarray as xr
import zarr
from zarr.codecs import ZstdCodec

from interp.sample import is_file_name
from interp.stacking import join

SCHEMA = 3
CHECKS = ("bytes", "structure")


class Empty(ValueError):
    """A run without one sample that could be measured."""

    def __init__(self, path: Path, attributes: dict):
        super().__init__(f"{path}: expected a sample that could be measured, got none")
        self.attributes = attributes


@dataclass(frozen=True)
class Run:
    """A run being written: every shard once, in any order, by any process."""

    path: Path
    shards: list[list[str]]
    """Ids of the samples of each shard."""

    def commit(self, number: int, dataset: xr.Dataset | None, facts: dict) -> None:
        """Writes a shard and confirms it; None where not one of its samples could be measured.

        Args:
            number: of the shard.
            dataset: with dimension sample, perhaps target, as `interp.stacking` makes it.
            facts: what becomes of each sample (`statuses`), and `attributes` of the shard that all
                shards of the run have to share.
        """
        digests = {}
        if dataset is not None:
            digests = self._write(number, dataset)
        write_json(self._confirmation(number), {"samples": self.shards[number]} | digests | facts)

    def _write(self, number: int, dataset: xr.Dataset) -> dict[str, str]:
        target = shard_path(self.path, number)
        aside = target.with_name(f".{target.name}.part")
        shutil.rmtree(aside, ignore_errors=True)
        # Chunks of zeros are written too: a chunk that is missing is always a fault.
        with zarr.config.set({"array.write_empty_chunks": True}), _quiet():
            dataset.to_zarr(
                aside, mode="w", zarr_format=3, consolidated=False, encoding=_encoding(dataset)
            )
        found = {check: _digest(aside, check) for check in CHECKS}
        shutil.rmtree(target, ignore_errors=True)  # left by a kill before it was confirmed
        aside.rename(target)
        return found

    def confirmed(self) -> dict[int, dict]:
        """Shards that are there as confirmed, by number; the others have to be written (again)."""
        said = self.confirmations()
        return {k: one for k, one in said.items() if _fault(self.path, k, one, "bytes") is None}

    def confirmations(self) -> dict[int, dict]:
        """What is said of every shard, by number; those that cannot be read are left out."""
        found = {}
        for number in range(len(self.shards)):
            try:
                said = json.loads(self._confirmation(number).read_text())
            except (OSError, ValueError):
                continue
            if isinstance(said, dict) and "statuses" in said:
                found[number] = said
        return found

    def finish(self, attributes: dict | None) -> None:
        """Says that all shards are there, with what they gave together; None takes it back."""
        manifest = read_manifest(self.path)
        write_json(self.path / "manifest.json", manifest | {"attributes": attributes})

    def _confirmation(self, number: int) -> Path:
        return shard_path(self.path, number).with_suffix(".json")


def shard_path(run: Path, number: int) -> Path:
    """Where a shard lies."""
    return run / "shards" / f"{number:05d}.zarr"


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Holds a run against other commands; the lock goes with the process, however it ends.

    Raises:
        ValueError: another process writes this run.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        try:
            flock(lock, LOCK_EX | LOCK_NB)
        except OSError as error:
            raise ValueError(
                f"{path}: expected to be its only writer, got another process that writes it; "
                "wait for it or choose another folder"
            ) from error
        yield


def start_run(
    path: Path,
    settings: dict,
    shards: list[list[str]],
    facts: dict | None = None,
    *,
    resume: bool = False,
) -> Run:
    """A run at `path`: an empty one, or with `resume` the one that is there.

    Args:
        path: a folder.
        settings: all that decides what the shards hold; a run that is resumed must have the same.
        shards: ids of the samples of each shard.
        facts: more attributes, which a run that is resumed keeps from its start.
        resume: go on with what is there; otherwise a run that was there before is removed.

    Raises:
        ValueError: `path` holds something else, or a run of other settings or samples.
    """
    settings = json.loads(json.dumps(settings))  # as it will be read
    if resume and _is_run(path):
        _check_same(path, settings, shards)
        return Run(path, shards)
    if path.exists() and any(path.iterdir()) and not _is_run(path):
        raise ValueError(
            f"{path}: expected an empty folder or a run, got other files; choose another"
        )
    content = {"schema": SCHEMA, "settings": settings, "facts": facts or {}, "shards": shards,
               "attributes": None}  # fmt: skip
    aside = path.with_name(f".{path.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    (aside / "shards").mkdir(parents=True)
    write_json(aside / "manifest.json", content)
    if path.exists():
        shutil.rmtree(path)
    aside.rename(path)  # with its manifest or not at all
    return Run(path, shards)


def _check_same(path: Path, settings: dict, shards: list[list[str]]) -> None:
    manifest = read_manifest(path)
    theirs = manifest["settings"]
    other = sorted(k for k in {*settings, *theirs} if settings.get(k) != theirs.get(k))
    if other or manifest["shards"] != shards:
        said = ", ".join(f"{k}={theirs.get(k)!r}" for k in other) or "other samples or shards"
        raise ValueError(
            f"{path}: expected the run that is there to go on with, got one with {said}; "
            "choose another folder, or leave --resume out to replace it"
        )


def _is_run(path: Path) -> bool:
    manifest = path / "manifest.json"
    try:
        return {"schema", "shards"} <= set(json.loads(manifest.read_text()))
    except (OSError, ValueError):
        return False


def read_manifest(path: Path) -> dict:
    """The manifest of a run.

    Raises:
        ValueError: none, or of another schema.
    """
    manifest = path / "manifest.json"
    if not manifest.is_file():
        raise ValueError(f"{path}: expected a run with a manifest.json, got none")
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

    Lazy where dask is installed. Attributes: settings, provenance, and of every sample its status.

    Args:
        path: of the run.
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
    manifest = read_manifest(path)
    if manifest["attributes"] is None and not partial:
        raise ValueError(
            f"{path}: expected a finished run, got one that was cut off; go on with --resume, or "
            "pass partial=True"
        )
    confirmations = {}
    for number, samples in enumerate(manifest["shards"]):
        said = _confirmation(path, number, samples, check, partial)
        if said is not None:
            confirmations[number] = said
    attributes = manifest["settings"] | manifest["facts"]
    attributes |= _together(path, list(confirmations.values()))
    with _quiet():
        opened = [
            xr.open_zarr(shard_path(path, number), consolidated=False, chunks=_chunks())
            for number, said in confirmations.items()
            if "bytes" in said
        ]
    if not opened:
        raise Empty(path, attributes)
    dataset = join(opened)
    dataset.attrs = attributes | (manifest["attributes"] or {})
    return dataset


def _confirmation(path: Path, number: int, samples: list, check: str, partial: bool) -> dict | None:
    """What confirms a shard; None for one that an unfinished run has not come to."""
    store = shard_path(path, number)
    confirmation = store.with_suffix(".json")
    if not confirmation.is_file() and partial:
        return None
    try:
        said = json.loads(confirmation.read_text())
        fault = _fault(path, number, said, check)
        fault = fault or (None if said["samples"] == samples else "other samples")
    except (OSError, ValueError, KeyError, TypeError):
        fault = "no confirmation that can be read"
    if fault is not None:
        raise ValueError(
            f"{path}: expected shard {store.name} as the manifest confirms it, got {fault}; "
            "extract these samples again with --resume"
        )
    return said


def _fault(path: Path, number: int, said: dict, check: str) -> str | None:
    """What is wrong with a shard."""
    store = shard_path(path, number)
    if "bytes" not in said:
        return None
    if not store.is_dir():
        return "none"
    return None if _digest(store, check) == said[check] else "other bytes"


def _together(path: Path, confirmations: list[dict]) -> dict:
    """Attributes that all shards share, and what each says of its samples and of itself."""
    found = {"statuses": {}, "data_hashes": {}, "reasons": {}, "reduced": {}, "codes": {}}
    shared: dict = {}
    for said in confirmations:
        for name in found:
            found[name] |= said.get(name, {})
        for key, value in said.get("attributes", {}).items():
            if shared.setdefault(key, value) != value:
                raise ValueError(
                    f"{path}: expected shards with one {key}, got {shared[key]!r} and {value!r}; "
                    "extract the run again"
                )
    hashes = "".join(sorted(found["data_hashes"].values()))
    found["data_hash"] = sha256(hashes.encode()).hexdigest()[:16]
    return shared | found | {"code": ", ".join(sorted(found.pop("codes")))}


def image_path(run: str | Path, sample: str) -> Path:
    """Where the resized image of a sample lies.

    Raises:
        ValueError: an id that would leave the folder.
    """
    if not is_file_name(sample):
        raise ValueError(f"expected a sample id of letters, digits and . _ -, got {sample!r}")
    return Path(run) / "images" / f"{sample}.png"


def to_netcdf(dataset: xr.Dataset, path: str | Path) -> None:
    """A dataset, of one sample say, as NetCDF (version 3, which every reader has).

    Attributes that NetCDF cannot hold (lists of records, None, truth values) become JSON text, and
    whole numbers 32 bits, as the format has them; xarray raises ValueError where one does not fit.
    """
    plain = (str, int, float)
    dataset = dataset.assign_attrs(
        {k: v if type(v) in plain else json.dumps(v) for k, v in dataset.attrs.items()}
    )
    dataset.to_netcdf(path, engine="scipy")


def write_json(path: Path, content: dict) -> None:
    """Writes a JSON file in one step: a reader sees the old one or the new one."""
    aside = path.with_suffix(".part")
    with aside.open("w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def _encoding(dataset: xr.Dataset) -> dict:
    """Checksums, and fill values that are no plausible numbers."""
    encoding = {}
    for name, array in dataset.variables.items():
        encoding[name] = {"compressors": (ZstdCodec(level=3, checksum=True),)}
        if array.dtype.kind in "fi":
            worst = np.nan if array.dtype.kind == "f" else np.iinfo(array.dtype).min
            encoding[name]["fill_value"] = array.dtype.type(worst)
    return encoding


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # zarr warns that its string type has no settled specification in format 3 yet.
        warnings.filterwarnings("ignore", message=".*Zarr V3 specification.*")
        yield


def _chunks():
    return {} if find_spec("dask") else None


def _digest(folder: Path, check: str) -> str:
    """Of all files' names and sizes and the metadata's content; of "bytes", all content."""
    digest = sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{file.relative_to(folder)}:{file.stat().st_size}\n".encode())
        if check == "bytes" or file.name == "zarr.json":
            digest.update(file.read_bytes())
    return digest.hexdigest()
