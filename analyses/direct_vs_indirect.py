"""How much of what an image does to an answer travels on the direct path of Eq. 1?

    python analyses/direct_vs_indirect.py                            # embedded model and scenes
    python analyses/direct_vs_indirect.py --model Qwen/Qwen2.5-VL-3B-Instruct --limit 100
    python analyses/direct_vs_indirect.py --from-run reports/out/run # redraw, no model needed

For every sample: the model's own greedy text, the exact ledger of each thinking and answer token
(METHODS.md 2), what that token loses when its row cannot read a source set (3.1), when the set's
content is replaced (3.2), the order-free shares of the direct path (3.3), maps (3.4, 3.5), and from
all of it the verdict (3.6). Before that the extractor has to pass its oracles on the loaded model
(section 6). Writes OUT/index.html, figures, tables, run, verdict.json and
manifest.json. With --training (the default for the embedded model) what training on a saliency
reward moved, by `analyses/before_after.py`, in OUT/before_after.
"""

import argparse
import sys

from analyses import command


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = command.parser(__doc__)
    command.add_report(parser, out="reports/out", limit=200)
    command.add_paths(parser)
    parser.add_argument("--training", action=argparse.BooleanOptionalAction,
        help="the embedded models before and after training too (default for tiny)")  # fmt: skip
    return parser.parse_args()


def _training(options: argparse.Namespace) -> None:
    """The embedded models before and after training, on at most 100 of the scenes."""
    from analyses.reports.before_after.models import run_arms
    from analyses.reports.before_after.page import RUN

    arms = {"before": command.BEFORE, "after": list(command.AFTER), "text": None,
            "data": "digits", "split": "test", "limit": min(options.limit, 100),
            "batch_size": 32, "detail": "tokens"}  # fmt: skip
    run_arms(argparse.Namespace(**vars(options) | arms), options.out / RUN)


def main() -> int:
    """Extracts, unless redrawing, and reports."""
    options = arguments()

    def report() -> dict[str, int]:
        command.refuse_several_processes()
        run = options.from_run
        if run is None:
            from analyses.reports.direct_vs_indirect.measure import extract_runs

            run = extract_runs(options, options.out / "run")
            if options.model == "tiny" if options.training is None else options.training:
                _training(options)
        from analyses.reports.direct_vs_indirect.page import write_report

        return write_report(run, options.out)

    return command.run(options, report)


if __name__ == "__main__":
    sys.exit(main())
