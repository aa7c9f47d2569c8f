"""Options and the frame that scripts share; nothing heavy is imported before they are parsed."""

import argparse
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path


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
    add = made.add_argument
    add("--data", default="digits",
        help="digits, the embedded scenes (default), or jsonl:FOLDER, visual_cot:PATH or "
             "saliency_r1:FOLDER")  # fmt: skip
    add("--split", default="test", help="its split (default: test)")
    add("--limit", type=int, default=limit, help=f"number of samples (default: {limit})")
    add("--max-new-tokens", type=int, default=256, help="length limit of the model's text")
    add("--out", type=Path, default=Path(out), help=f"folder to write (default: {out})")
    add("--from-run", type=Path, help="redraw from this run instead of loading a model")
    add("--no-images", action="store_true", help="do not copy the samples' images into the run")


def run(options: argparse.Namespace, report: Callable[[], dict[str, int]]) -> int:
    """Reports, says where it went and how many samples were ok; the exit code.

    Args:
        options: with log_level and out.
        report: makes it; returns how many samples were ok, skipped and failed.
    """
    logging.basicConfig(level=options.log_level.upper(), format="%(levelname)s %(message)s")
    start = time.monotonic()
    try:
        counts = report()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print(
        f"{options.out / 'index.html'}: {counts['ok']} samples ok, {counts['skipped']} skipped, "
        f"{counts['failed']} failed, {time.monotonic() - start:.0f} s"
    )
    return 3 if counts["failed"] else 0
