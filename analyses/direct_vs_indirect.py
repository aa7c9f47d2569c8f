"""How much of what an image does to an answer travels on the direct path of Eq. 1?

    python analyses/direct_vs_indirect.py                            # embedded model and scenes
    python analyses/direct_vs_indirect.py --model Qwen/Qwen2.5-VL-3B-Instruct --limit 100
    python analyses/direct_vs_indirect.py --from-run reports/out/run # redraw, no model needed

For every sample: the model's own greedy text, the exact ledger of each thinking and answer token
(METHODS.md 2), what that token loses when its row cannot read a source set (3.1), when the set's
content is replaced (3.2), the order-free shares of the direct path (3.3), maps (3.4, 3.5), and from
all of it the verdict (3.6). Before that the extractor has to pass its oracles on the loaded model
(section 6). Writes OUT/index.html, figures, tables, run, verdict.json and
manifest.json.
"""

import argparse
import logging
import sys
import time
from pathlib import Path

log = logging.getLogger("direct_vs_indirect")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="tiny", help="embedded name, hub id or folder (default: tiny)")
    add("--adapter", help="peft adapter, a folder or hub id")
    add("--compare", help="a second model or an adapter on the first, on the same texts")
    add("--data", default="digits", help="data set (default: digits, the embedded scenes)")
    add("--split", default="test", help="its split (default: test)")
    add("--limit", type=int, default=200, help="number of samples (default: 200)")
    add("--seed", type=int, default=0, help="of the scenes and the bootstrap (default: 0)")
    add("--text", choices=("completion", "reference"), default="completion",
        help="explain the model's own greedy text, or the samples' text")  # fmt: skip
    add("--gauge", choices=("centered", "raw"), default="centered", help="gauge of the logits")
    add("--effects", choices=("all", "edge"), default="all",
        help="all paths and the verdict, or edge effects alone, which is quick")  # fmt: skip
    add("--device", help="default: a GPU where there is one")
    add("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float64"),
        help="default: auto, the checkpoint's")  # fmt: skip
    add("--witness", action=argparse.BooleanOptionalAction,
        help="ask TransformerLens too, on a copy; default below 2e9 parameters")  # fmt: skip
    add("--max-new-tokens", type=int, default=256, help="length limit of the model's text")
    add("--batch-size", type=int, default=16, help="samples per generation batch and shard")
    add("--out", type=Path, default=Path("reports/out"), help="folder to write")
    add("--from-run", type=Path, help="redraw from this run instead of loading a model")
    add("--no-images", action="store_true", help="do not copy the samples' images into the run")
    add("--log-level", default="warning", choices=("debug", "info", "warning", "error"))
    return parser.parse_args()


def main() -> int:
    """Extracts, unless redrawing, and reports."""
    options = arguments()
    logging.basicConfig(level=options.log_level.upper(), format="%(levelname)s %(message)s")
    start = time.monotonic()
    try:
        if options.from_run is None:
            from analyses.extraction import extract_runs

            run = extract_runs(options, options.out / "run")
        else:
            run = options.from_run
        from analyses.page import write_report

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
