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
import os
import sys

from analyses import command


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = command.parser(__doc__)
    command.add_report(parser, out="reports/out/faithfulness", limit=100)
    command.add_methods(parser)
    return parser.parse_args()


def main() -> int:
    """Scores, unless redrawing, and reports."""
    options = arguments()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its profiler reports on every start

    def report() -> dict[str, int]:
        command.refuse_several_processes()
        run = options.from_run
        if run is None:
            from analyses.reports.faithfulness.measure import run_methods

            run = run_methods(options, options.out / "run")
        from analyses.reports.faithfulness.page import write_report

        return write_report(run, options.out)

    return command.run(options, report)


if __name__ == "__main__":
    sys.exit(main())
