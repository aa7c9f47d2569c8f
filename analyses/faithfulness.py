"""How faithful is a saliency map, and does the direct path suffice for one?

    python analyses/faithfulness.py                                # embedded model and scenes
    python analyses/faithfulness.py --model Qwen/Qwen2.5-VL-3B-Instruct --limit 100
    python analyses/faithfulness.py --from-run reports/out/faithfulness/run

For every sample and method: the map of the model's own answer, deletion and insertion at 5, 15
and 30 % of the pixels (Table 1 of Saliency-R1), rank agreement with exact patch maps and
occlusion, mass on the evidence, and what the map costs. Writes OUT/index.html, figures, tables, run
and manifest.json.
"""

import argparse
import logging
import os
import sys
import time
from pathlib import Path


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="tiny", help="embedded name, hub id or folder (default: tiny)")
    add("--adapter", help="peft adapter, a folder or hub id")
    add("--data", default="digits", help="data set (default: digits, the embedded scenes)")
    add("--split", default="test", help="its split (default: test)")
    add("--limit", type=int, default=100, help="number of samples (default: 100)")
    add("--seed", type=int, default=0, help="of the scenes and the bootstrap (default: 0)")
    add("--methods", nargs="+", help="some of the methods by name (default: all)")
    add("--device", help="default: a GPU where there is one")
    add("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float64"),
        help="default: auto, the checkpoint's")  # fmt: skip
    add("--witness", action=argparse.BooleanOptionalAction,
        help="ask TransformerLens too, on a copy; default below 2e9 parameters")  # fmt: skip
    add("--max-new-tokens", type=int, default=256, help="length limit of the model's text")
    add("--out", type=Path, default=Path("reports/out/faithfulness"), help="folder to write")
    add("--from-run", type=Path, help="redraw from this run instead of loading a model")
    add("--no-images", action="store_true", help="do not copy the samples' images into the run")
    add("--log-level", default="warning", choices=("debug", "info", "warning", "error"))
    return parser.parse_args()


def main() -> int:
    """Scores, unless redrawing, and reports."""
    options = arguments()
    logging.basicConfig(level=options.log_level.upper(), format="%(levelname)s %(message)s")
    start = time.monotonic()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its profiler reports on every start
    try:
        run = options.from_run
        if run is None:
            from analyses.map_run import run_methods

            run = run_methods(options, options.out / "run")
        from analyses.map_page import write_report

        counts = write_report(run, options.out)
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


if __name__ == "__main__":
    sys.exit(main())
