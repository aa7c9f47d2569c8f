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

BEFORE = "tiny-cold"
AFTER = ("tiny-saliency-r1", "tiny-effect", "tiny-grpo-control")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = command.parser(__doc__, with_model=False)
    command.add_report(parser, out="reports/out/before_after", limit=100)
    add = parser.add_argument
    add("--before", default=BEFORE, help=f"the model that was trained (default: {BEFORE})")
    add("--after", nargs="+", default=list(AFTER),
        help="adapters or models, a control without saliency reward last")  # fmt: skip
    add("--text", choices=("reference", "before"),
        help="forced through all models: the samples' text, the default where all have thinking, "
             "or the first model's own")  # fmt: skip
    add("--batch-size", type=int, default=32, help="samples per batch")
    return parser.parse_args()


def main() -> int:
    """Measures, unless redrawing, and reports."""
    options = arguments()

    def report() -> dict[str, int]:
        run = options.from_run
        if run is None:
            from analyses.arms_run import run_arms

            run = run_arms(options, options.out / "run")
        from analyses.arms_page import write_report

        return write_report(run, options.out)

    return command.run(options, report)


if __name__ == "__main__":
    sys.exit(main())
