"""A run on disk: shards of labelled arrays that a manifest confirms, and their opening.

    RUN/manifest.json            schema, provenance, and per shard its samples and digest
    RUN/shards/NNNNN.zarr        Zarr v3, every chunk with a checksum
    RUN/images/SAMPLE.png        the resized image that the model saw, so that overlays redraw

A shard is written aside and renamed into place, then the manifest is replaced in one step. What a
manifest does not confirm, byte for byte, is not opened: a missing chunk would read as zeros, and
most single-bit flips in an unchecked chunk as wrong numbers, both without a word.
"""

import json
import os
import re
import shutil
import warnings
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
import xarray as xr
from zarr.codecs import ZstdCodec

SCHEMA = 2
# Only what has the dimension is joined; everything else has to be the same in all pieces.
_CONCAT = {"data_vars": "minimal", "coords": "minimal", "compat": "equals"}


@dataclass
class Run:
    """A run being written; `add` commits one shard at a time."""

    path: Path
    attributes: dict
    """Provenance: what every shard of this run has in common."""
    shards: list[dict] = field(default_factory=list)

    def add(self, dataset: xr.Dataset) -> None:
        """Writes one shard, as `stack` makes it, and confirms it in the manifest."""
        name = f"{len(self.shards):05d}.zarr"
        target, aside = self.path / "shards" / name, self.path / "shards" / f".{name}.part"
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(parents=True, exist_ok=True)
        codec = (ZstdCodec(level=3, checksum=True),)
        encoding = {key: {"compressors": codec} for key in dataset.variables}
        with warnings.catch_warnings():
            # zarr warns that its string type has no settled specification in format 3 yet.
            warnings.filterwarnings("ignore", message=".*Zarr V3 specification.*")
            dataset.to_zarr(aside, mode="w", zarr_format=3, consolidated=False, encoding=encoding)
        digest = _digest(aside)
        shutil.rmtree(target, ignore_errors=True)  # left by a kill before the manifest confirmed it
        aside.rename(target)
        samples = [str(name) for name in dataset["sample"].values]
        self.shards.append({"name": name, "samples": samples, "digest": digest})
        self.confirm()

    def confirm(self) -> None:
        """Writes the manifest: what it names from now on counts."""
        content = {"schema": SCHEMA, "attributes": self.attributes, "shards": self.shards}
        write_json(self.path / "manifest.json", content)


def start_run(path: Path, attributes: dict) -> Run:
    """An empty run at `path`; a run that was there before is removed.

    Raises:
        ValueError: `path` holds something else.
    """
    if path.exists() and any(path.iterdir()) and not _is_run(path):
        raise ValueError(
            f"{path}: expected an empty folder or a run, got other files; choose another"
        )
    shutil.rmtree(path, ignore_errors=True)
    (path / "shards").mkdir(parents=True)
    run = Run(path, attributes)
    run.confirm()
    return run


def _is_run(path: Path) -> bool:
    manifest = path / "manifest.json"
    return manifest.is_file() and {"schema", "shards"} <= set(json.loads(manifest.read_text()))


def open_run(path: str | Path) -> xr.Dataset:
    """All confirmed shards of a run as one dataset, joined along sample and target.

    Lazy where dask is installed.

    Raises:
        ValueError: no manifest, another schema, no shard, or a shard whose bytes are not what the
            manifest confirms, naming it.
    """
    path = Path(path)
    manifest = path / "manifest.json"
    if not manifest.is_file():
        raise ValueError(f"{path}: expected a run with a manifest.json, got none")
    content = json.loads(manifest.read_text())
    if content.get("schema") != SCHEMA:
        raise ValueError(
            f"{path}: expected schema {SCHEMA}, got {content.get('schema')}; extract the run again"
        )
    if not content["shards"]:
        raise ValueError(f"{path}: expected at least one shard, got none")
    opened = []
    for shard in content["shards"]:
        store = path / "shards" / shard["name"]
        if not store.is_dir() or _digest(store) != shard["digest"]:
            raise ValueError(
                f"{path}: expected shard {shard['name']} as the manifest confirms it, got "
                f"{'other bytes' if store.is_dir() else 'none'}; extract these samples again"
            )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*Zarr V3 specification.*")
            opened.append(xr.open_zarr(store, consolidated=False, chunks=_chunks()))
    dataset = _join(opened)
    dataset.attrs = content["attributes"]
    return dataset


def image_path(run: str | Path, sample: str) -> Path:
    """Where the resized image of a sample lies.

    Raises:
        ValueError: an id that would leave the folder.
    """
    if not re.fullmatch(r"[\w.-]+", sample) or sample.startswith("."):
        raise ValueError(f"expected a sample id of letters, digits and . _ -, got {sample!r}")
    return Path(run) / "images" / f"{sample}.png"


def write_json(path: Path, content: dict) -> None:
    """Writes a JSON file in one step: a reader sees the old one or the new one."""
    aside = path.with_suffix(".part")
    with aside.open("w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


# ----------------------------------------------------------------------------- samples and shards


def stack(datasets: list[xr.Dataset], samples: xr.Dataset) -> xr.Dataset:
    """One shard from the datasets of single samples, targets one after the other.

    `target_sample` says to which sample a target belongs. What describes the source tokens gets the
    dimensions (sample, source) and is padded behind the shorter sequences with role "padding".

    Args:
        datasets: one per sample, with dimension target and perhaps source.
        samples: facts about the samples, with dimension sample, in the same order.
    """
    longest = max(d.sizes.get("source", 0) for d in datasets)
    by_target, by_source = [], []
    for name, one in zip(samples["sample"].values, datasets, strict=True):
        dataset = _padded(one, "source", longest)
        of_source = [c for c in dataset.coords if dataset[c].dims == ("source",) and c != "source"]
        by_source.append(dataset[of_source].reset_coords().drop_vars("source", errors="ignore"))
        by_target.append(
            dataset.drop_vars(of_source)
            .assign_coords(target_sample=("target", [name] * dataset.sizes["target"]))
            .drop_vars("target")
        )
    shard = xr.concat(by_target, dim="target", join="exact", **_CONCAT)
    if longest:
        described = xr.concat(by_source, dim=samples["sample"])
        shard = shard.merge(described.set_coords(list(described.data_vars)))
    shard = shard.merge(samples)
    shard.attrs = {}
    return shard


def _padded(dataset: xr.Dataset, dim: str, length: int) -> xr.Dataset:
    """The dataset with a dimension filled up to `length`."""
    missing = length - dataset.sizes.get(dim, length)
    if missing == 0:
        return dataset
    fills = {"row": -1, "column": -1, "image": -1, "source_role": "padding", "source_token": ""}
    blank = dataset.isel({dim: [0] * missing})
    for name, array in blank.variables.items():
        if dim in array.dims:
            blank[name] = (array.dims, np.full(array.shape, fills.get(name, 0)).astype(array.dtype))
    if dim in blank.coords:
        blank[dim] = np.arange(length - missing, length)
    return xr.concat([dataset, blank], dim=dim, join="override", **_CONCAT)


def _join(shards: list[xr.Dataset]) -> xr.Dataset:
    for dim in ("source", "box_number"):
        longest = max(s.sizes.get(dim, 0) for s in shards)
        shards = [_padded(s, dim, longest) for s in shards]
    joined = []
    for dim in [d for d in ("target", "sample") if d in shards[0].dims]:
        names = [name for name, array in shards[0].variables.items() if dim in array.dims]
        joined.append(xr.concat([s[names] for s in shards], dim=dim, join="exact", **_CONCAT))
    rest = [n for n, v in shards[0].variables.items() if not {"target", "sample"} & set(v.dims)]
    return xr.merge([*joined, shards[0][rest]], join="exact", compat="equals")


def _chunks():
    from importlib.util import find_spec

    return {} if find_spec("dask") else None


def _digest(folder: Path) -> str:
    digest = sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{file.relative_to(folder)}:{file.stat().st_size}\n".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()
