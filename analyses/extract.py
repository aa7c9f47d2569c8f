"""Measures many samples into a run that the reports read; no report is drawn here.

    python analyses/extract.py direct_vs_indirect --model M --data jsonl:FOLDER --out OUT --dry-run
    python analyses/extract.py direct_vs_indirect --model M --data jsonl:FOLDER --out OUT
    accelerate launch --num_processes 8 analyses/extract.py direct_vs_indirect … --out OUT --resume
    python analyses/direct_vs_indirect.py --from-run OUT/run --out OUT          # needs no model

The first argument is the report that the run is for: direct_vs_indirect, faithfulness or
before_after, each with the options that its own script has. A run that was cut off goes on with
--resume, by any number of processes: shards are fixed lists of samples in fixed batches, so that
the result is the same, bit for bit. Where memory runs out the batch is halved and the shard marked;
a sample that cannot be measured is counted as skipped or failed, with its reason.
"""

import argparse
import os
import sys

from analyses import command


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    reports = parser.add_subparsers(dest="report", required=True, metavar="REPORT")
    own = {
        "direct_vs_indirect": (command.add_paths, True),
        "faithfulness": (command.add_methods, True),
        "before_after": (command.add_arms, False),
    }
    for name, (add_own, with_model) in own.items():
        made = command.parser(f"What analyses/{name}.py reads.", with_model=with_model)
        command.add_extraction(made, out=f"reports/out/{name}", limit=200)
        add_own(made)
        made.add_argument(
            "--dry-run", action="store_true", help="say what it would take; no weights needed"
        )
        about = made.description
        reports.add_parser(name, parents=[made], add_help=False, description=about, help=about)
    return parser.parse_args()


def _extract(options: argparse.Namespace) -> dict[str, int] | None:
    """Writes OUT/run and counts statuses; or tells what that would take."""
    from analyses.reports.before_after import models as arms_run
    from analyses.reports.before_after import runs as arms
    from analyses.reports.direct_vs_indirect import measure as extraction
    from analyses.reports.faithfulness import measure as map_run
    from analyses.run.shards import counts

    if options.dry_run:
        from analyses.run.estimate import tell

        return tell(options)  # nothing is made, nothing to count
    path = options.out / "run"
    runs = {
        "direct_vs_indirect": extraction.extract_runs,
        "faithfulness": map_run.run_methods,
        "before_after": arms_run.run_arms,
    }
    made = runs[options.report](options, path)
    return counts(arms.runs_in(made) or [made])


def main() -> int:
    """Extracts."""
    options = arguments()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its profiler reports on every start
    return command.run(options, lambda: _extract(options), made="run")


if __name__ == "__main__":
    sys.exit(main())
