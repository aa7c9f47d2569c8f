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

import sys
from importlib import import_module

from analyses.options import EXTRACTIONS
from analyses.run import command
from analyses.run.arguments import parse_one_of


def _extract(report: str, options) -> dict[str, int] | None:
    """Writes OUT/run and counts statuses; or tells what that would take."""
    command.refuse_data(options)
    from analyses.run.shards import counts

    if options.dry_run:
        from analyses.run.estimate import tell

        return tell(report, options)  # nothing is made, nothing to count
    command.refuse_run(options, options.out / "run")
    measure = import_module(f"analyses.reports.{report}.measure")
    return counts(measure.measure_run(options, options.out / "run"))


def main() -> int:
    """Extracts."""
    report, options = parse_one_of(EXTRACTIONS, __doc__)
    return command.run(
        lambda: _extract(report, options),
        options.out / "run",
        log_level=options.log_level,
        threads=options.threads,
    )


if __name__ == "__main__":
    sys.exit(main())
