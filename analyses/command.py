"""Options and the frame that scripts share; nothing heavy is imported before they are parsed."""

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

BEFORE = "tiny-cold"
AFTER = ("tiny-saliency-r1", "tiny-effect", "tiny-grpo-control")


def parser(description: str, *, with_model: bool = True) -> argparse.ArgumentParser:
    """A parser with the module's docstring as its description, and the options of all scripts."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    if with_model:
        add("--model", default="tiny", help="embedded name, hub id or folder (default: tiny)")
        add("--adapter", help="peft adapter, a folder or hub id")
    add("--device", help="default: a GPU where there is one")
    add("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float64"),
        help="default: auto, the checkpoint's")  # fmt: skip
    add("--witness", action=argparse.BooleanOptionalAction,
        help="ask TransformerLens too, on a copy; default below 2e9 parameters")  # fmt: skip
    add("--seed", type=int, default=0, help="of the samples and the bootstrap (default: 0)")
    add("--log-level", default="warning", choices=("debug", "info", "warning", "error"))
    return made


def add_report(made: argparse.ArgumentParser, out: str, limit: int) -> None:
    """The options of scripts that write a report on samples."""
    add_extraction(made, out, limit)
    made.add_argument("--from-run", type=Path, help="redraw from this run instead of a model")


def add_extraction(made: argparse.ArgumentParser, out: str, limit: int) -> None:
    """The options of scripts that measure samples."""
    add = made.add_argument
    add("--data", default="digits",
        help="digits, the embedded scenes (default), or jsonl:FOLDER, visual_cot:PATH, "
             "saliency_r1:FOLDER or hf:FOLDER")  # fmt: skip
    add("--split", default="test", help="its split (default: test)")
    add("--limit", type=int, default=limit, help=f"number of samples (default: {limit})")
    add("--max-new-tokens", type=int, default=256, help="length limit of the model's text")
    add("--out", type=Path, default=Path(out), help=f"folder to write (default: {out})")
    add("--no-images", action="store_true", help="do not copy the samples' images into the run")
    add("--resume", action="store_true", help="go on with the run that is in OUT")
    add("--shard-size", type=int,
        help="samples per shard (default: 64; with full detail 4)")  # fmt: skip
    add("--batch-size", type=int, default=16, help="samples that write at once (default: 16)")
    add("--max-memory", type=_bytes, default=_bytes("2G"),
        help="of a batch besides the model, as 500M or 8G (default: 2G)")  # fmt: skip
    add("--threads", type=int, help="of this process on a CPU (default: torch's choice)")


def add_paths(made: argparse.ArgumentParser) -> None:
    """The options of what `direct_vs_indirect.py` measures."""
    add = made.add_argument
    add("--compare", help="a second model or an adapter on the first, on the same texts")
    add("--text", choices=("completion", "reference"), default="completion",
        help="explain the model's own greedy text, or the samples' text")  # fmt: skip
    add("--gauge", choices=("centered", "raw"), default="centered", help="gauge of the logits")
    add("--effects", choices=("all", "edge"), default="all",
        help="all paths and the verdict, or edge effects alone, which is quick")  # fmt: skip
    add("--detail", choices=("full", "tokens", "summary"), default="tokens",
        help="of direct contributions: by layer, head and source token; by source token; or sums "
             "by role, layer and target alone")  # fmt: skip


def add_methods(made: argparse.ArgumentParser) -> None:
    """The options of what `faithfulness.py` measures."""
    made.add_argument("--methods", nargs="+", help="some of the methods by name (default: all)")


def add_arms(made: argparse.ArgumentParser) -> None:
    """The options of what `before_after.py` measures."""
    add = made.add_argument
    add("--before", default=BEFORE, help=f"the model that was trained (default: {BEFORE})")
    add("--after", nargs="+", default=list(AFTER),
        help="adapters or models, a control without saliency reward last")  # fmt: skip
    add("--text", choices=("reference", "before"), default=None,
        help="forced through all models: the samples' text, the default where all have thinking, "
             "or the first model's own")  # fmt: skip


def _bytes(text: str) -> int:
    """A size with a unit of 1024s."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    number, unit = (text[:-1], text[-1]) if text[-1:].upper() in units else (text, "")
    try:
        return int(float(number) * units.get(unit.upper(), 1))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a size as 500M or 8G, got {text!r}") from error


def run(
    options: argparse.Namespace,
    report: Callable[[], dict[str, int] | None],
    made: str = "index.html",
) -> int:
    """Reports, says where it went and how many samples were ok; the exit code.

    Args:
        options: with log_level, out and perhaps threads.
        report: makes it; returns how many samples were ok, skipped and failed, if any were.
        made: what to point at, in the folder.
    """
    logging.basicConfig(level=options.log_level.upper(), format="%(levelname)s %(message)s")
    start = time.monotonic()
    try:
        _set_threads(getattr(options, "threads", None))
        counts = report()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; --resume goes on", file=sys.stderr)
        return 130
    if counts is None:
        return 0
    if int(os.environ.get("RANK", "0")) == 0:
        print(
            f"{options.out / made}: {counts['ok']} samples ok, {counts['skipped']} skipped, "
            f"{counts['failed']} failed, {time.monotonic() - start:.0f} s"
        )
    return 3 if counts["failed"] else 0


def refuse_several_processes() -> None:
    """Raises ValueError under a launcher of several processes, which would all draw the report."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count > 1:
        raise ValueError(
            f"expected one process to draw a report, got WORLD_SIZE={count}; launch "
            "analyses/extract.py, then redraw with --from-run"
        )


def _set_threads(asked: int | None) -> None:
    if asked is not None:
        import torch

        torch.set_num_threads(asked)
