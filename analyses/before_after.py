"""What did training on a saliency reward move: the effect of the evidence, or only its direct part?

    python analyses/before_after.py                                  # the embedded adapters
    python analyses/before_after.py --before FOLDER --after ADAPTER ADAPTER
    python analyses/before_after.py --from-run reports/out/before_after/run

On held-out samples with evidence boxes, for the model before training and every one after it:
accuracy, alignment of three maps with its controls, deletion and insertion, every path of the edge
effect, and exact total effects of the evidence with their direct share (METHODS.md 3), the latter
on the same text teacher-forced through all models. Writes OUT/index.html, figures, tables, run and
manifest.json.
"""

import argparse
import sys

from analyses import command


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = command.parser(__doc__, with_model=False)
    command.add_report(parser, out="reports/out/before_after", limit=100)
    command.add_arms(parser)
    parser.set_defaults(batch_size=32)
    return parser.parse_args()


def main() -> int:
    """Measures, unless redrawing, and reports."""
    options = arguments()

    def report() -> dict[str, int]:
        command.refuse_several_processes()
        run = options.from_run
        if run is None:
            from analyses.reports.before_after.models import run_arms

            run = run_arms(options, options.out / "run")
        from analyses.reports.before_after.page import write_report

        return write_report(run, options.out)

    return command.run(options, report)


if __name__ == "__main__":
    sys.exit(main())
