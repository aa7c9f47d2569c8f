"""Writing a run on disk (`interp.store` says what it looks like and opens it).

A shard is written aside and renamed into place, then confirmed in one step. Shards are a fixed list
of samples each, so several processes may write one run, each its own shards, and a run that was cut
off goes on.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
import zarr
from filelock import FileLock, Timeout
from zarr.codecs import ZstdCodec

from interp.store.opening import (
    CHECKS,
    SCHEMA,
    digest,
    fault_of,
    quiet,
    read_manifest,
    shard_path,
    write_json,
)
from interp.vocabulary import describe


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
            dataset: with dimension sample, perhaps target, as `interp.store.joining` makes it.
            facts: what becomes of each sample (`statuses`), and `attributes` of the shard that all
                shards of the run have to share.

        Raises:
            ValueError: a variable that the vocabulary does not have.
        """
        digests = {}
        if dataset is not None:
            digests = self._write(number, describe(dataset))
        write_json(self._confirmation(number), {"samples": self.shards[number]} | digests | facts)

    def _write(self, number: int, dataset: xr.Dataset) -> dict[str, str]:
        target = shard_path(self.path, number)
        aside = target.with_name(f".{target.name}.part")
        shutil.rmtree(aside, ignore_errors=True)
        # Chunks of zeros are written too: a chunk that is missing is always a fault.
        with zarr.config.set({"array.write_empty_chunks": True}), quiet():
            dataset.to_zarr(
                aside, mode="w", zarr_format=3, consolidated=False, encoding=_encoding(dataset)
            )
        digests = {check: digest(aside, check) for check in CHECKS}
        shutil.rmtree(target, ignore_errors=True)  # left by a kill before it was confirmed
        aside.rename(target)
        return digests

    def confirmed(self) -> dict[int, dict]:
        """Shards that are there as confirmed, by number; the others have to be written (again)."""
        confirmations = self.confirmations()
        return {
            k: confirmation
            for k, confirmation in confirmations.items()
            if fault_of(self.path, k, confirmation, "bytes") is None
        }

    def confirmations(self) -> dict[int, dict]:
        """Confirmations of shards by number; those that cannot be read are left out."""
        confirmations = {}
        for number in range(len(self.shards)):
            try:
                confirmation = json.loads(self._confirmation(number).read_text())
            except (OSError, ValueError):
                continue
            if isinstance(confirmation, dict) and "statuses" in confirmation:
                confirmations[number] = confirmation
        return confirmations

    def finish(self, attributes: dict | None) -> None:
        """Says that all shards are there, with what they gave together; None takes it back."""
        manifest = read_manifest(self.path)
        write_json(self.path / "manifest.json", manifest | {"attributes": attributes})

    def _confirmation(self, number: int) -> Path:
        return shard_path(self.path, number).with_suffix(".json")


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Holds a run against other commands; the lock goes with the process, however it ends.

    Raises:
        ValueError: another process writes this run.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(
            f"{path}: expected to be its only writer, got another process that writes it; "
            "wait for it or choose another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


def start_run(
    path: Path,
    settings: dict,
    shards: list[list[str]],
    facts: dict | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> Run:
    """A run at `path`: an empty one, or with `resume` the one that is there.

    Args:
        path: a folder.
        settings: all that decides what the shards hold; a run that is resumed must have the same.
        shards: ids of the samples of each shard.
        facts: more attributes, which a run that is resumed keeps from its start.
        resume: go on with what is there.
        overwrite: remove a run that is there; one without a finished shard is removed anyway.

    Raises:
        ValueError: `path` holds something else, a run with something in it, or a run of other
            settings or samples.
    """
    settings = json.loads(json.dumps(settings))  # as it will be read
    if resume and _is_run(path):
        _check_same(path, settings, shards)
        return Run(path, shards)
    if path.exists() and any(path.iterdir()) and not _is_run(path):
        raise ValueError(
            f"{path}: expected an empty folder or a run, got other files; choose another"
        )
    if not overwrite:
        refuse_measured(path)
    content = {
        "schema": SCHEMA,
        "settings": settings,
        "facts": facts or {},
        "shards": shards,
        "attributes": None,
    }
    aside = path.with_name(f".{path.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    (aside / "shards").mkdir(parents=True)
    write_json(aside / "manifest.json", content)
    if path.exists():
        shutil.rmtree(path)
    aside.rename(path)  # with its manifest or not at all
    return Run(path, shards)


def refuse_measured(path: Path) -> None:
    """Raises ValueError for a run that holds something; an empty one is lost without a loss."""
    if not _is_run(path):
        return
    manifest = read_manifest(path)
    n_done = len(Run(path, manifest["shards"]).confirmations())
    is_finished = manifest.get("attributes") is not None
    if is_finished or n_done:
        of = (
            "a finished one" if is_finished else f"{n_done} of its {len(manifest['shards'])} shards"
        )
        raise ValueError(
            f"{path}: expected a folder without a run, got {of}; pass --resume to go on with it, "
            "--overwrite to replace it, or choose another folder"
        )


def _check_same(path: Path, settings: dict, shards: list[list[str]]) -> None:
    manifest = read_manifest(path)
    stored = manifest["settings"]
    differences = sorted(k for k in {*settings, *stored} if settings.get(k) != stored.get(k))
    if differences or manifest["shards"] != shards:
        description = (
            ", ".join(f"{k}={stored.get(k)!r} (asked: {settings.get(k)!r})" for k in differences)
            or "other samples or shards"
        )
        raise ValueError(
            f"{path}: expected the run that is there to go on with, got one with {description}; "
            "choose another folder, or replace it with --overwrite in place of --resume"
        )


def _is_run(path: Path) -> bool:
    manifest = path / "manifest.json"
    try:
        return {"schema", "shards"} <= set(json.loads(manifest.read_text()))
    except (OSError, ValueError):
        return False


def _encoding(dataset: xr.Dataset) -> dict:
    """Checksums, and fill values that are no plausible numbers."""
    encoding = {}
    for name, array in dataset.variables.items():
        encoding[name] = {"compressors": (ZstdCodec(level=3, checksum=True),)}
        if array.dtype.kind in "fi":
            worst = np.nan if array.dtype.kind == "f" else np.iinfo(array.dtype).min
            encoding[name]["fill_value"] = array.dtype.type(worst)
    return encoding
