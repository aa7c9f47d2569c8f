"""Readers of samples: one module per data set, all returning a list of `Sample`."""

from collections.abc import Callable
from importlib import import_module
from inspect import signature
from pathlib import Path

from interp.data.sample import Sample

FROM_FILES = ("jsonl", "visual_cot", "saliency_r1", "hf")
EMBEDDED = ("digits", "digits_brief")
NAMES = (*EMBEDDED, *FROM_FILES)


def load_samples(
    name: str | Path, *, split: str = "test", limit: int = 64, **options
) -> list[Sample]:
    """The first `limit` samples of a data set's split.

    Args:
        name: "digits", the embedded scenes; "digits_brief", those of three kinds of question with
            one thought for all; or "jsonl:PATH", "visual_cot:PATH", "saliency_r1:PATH", "hf:PATH"
            for files on disk, as their modules in `interp.data` describe.
        split: "train" or "test"; of "digits" also "shortcut", where the colour of a frame tells
            the answer in nine scenes of ten, and "broken", where it never does; of files, which.
        limit: how many.
        options: `seed`, of the scenes or of the order in which rows are read (None for the file's
            own); the others as the reader takes them.

    Raises:
        ValueError: an unknown data set, split or option, a limit below 1, a missing file, or not
            one readable row.
    """
    kind, _, path = str(name).partition(":")
    if limit < 1:
        raise ValueError(f"expected limit >= 1, got {limit}")
    if kind in EMBEDDED and not path:
        from interp.data.digits import scenes as digits
        from interp.data.digits import shortcut

        load = digits.load if kind == "digits" else digits.load_brief
        if kind == "digits" and split in shortcut.SPLITS:
            load = shortcut.load
        return _checked(load, options)(split=split, limit=limit, **options)
    if kind not in FROM_FILES or not path:
        raise ValueError(
            f"expected a data set of {NAMES}, those from files with a path ('jsonl:FOLDER'), "
            f"got {name!r}"
        )
    load = import_module(f"interp.data.{kind}").load
    return _checked(load, options)(Path(path), split=split, limit=limit, **options)


def _checked(load: Callable, options: dict) -> Callable:
    """The reader, where it takes such options."""
    known = sorted(set(signature(load).parameters) - {"path", "folder", "split", "limit"})
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f"expected options of {known} for this data set, got {unknown}; seed=None keeps the "
            "order of a file, a number draws one"
        )
    return load
