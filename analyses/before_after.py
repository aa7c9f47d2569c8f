"""Did training on a saliency reward move the effect of the evidence, or only its direct part?

    python analyses/before_after.py                                  # the embedded adapters
    python analyses/before_after.py --before FOLDER --after ADAPTER ADAPTER
    python analyses/before_after.py --from-run reports/out/before_after/run

On held-out samples with evidence boxes, for the model before training and every one after it:
accuracy, alignment of three maps with its controls, deletion and insertion, every path of the edge
effect, and exact total effects of the evidence with their direct share (METHODS.md 3), the latter
on the same text teacher-forced through all models. Writes OUT/index.html, figures, tables, run and
manifest.json.
"""

import sys

from analyses.options import BeforeAfterReport
from analyses.run import command
from analyses.run.arguments import parse


def main() -> int:
    """Measures, unless redrawing, and reports."""
    return command.make_report("before_after", parse(BeforeAfterReport, __doc__))


if __name__ == "__main__":
    sys.exit(main())
