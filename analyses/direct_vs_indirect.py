"""How much of what an image does to an answer travels on the direct path of Eq. 1?

    python analyses/direct_vs_indirect.py                            # embedded model and scenes
    python analyses/direct_vs_indirect.py --model Qwen/Qwen2.5-VL-3B-Instruct --limit 100
    python analyses/direct_vs_indirect.py --from-run reports/out/run # redraw, no model needed

For every sample: the model's own greedy text, the exact ledger of each thinking and answer token
(METHODS.md 2), what that token loses when its row cannot read a source set (3.1), when the set's
content is replaced (3.2), the order-free shares of the direct path (3.3), and maps (3.4, 3.5). The
verdict (3.6, 3.7) is made on scenes of its own, with the words as a fourth path: its rule is
analyses/reports/direct_vs_indirect/RULE.md. Before all that the extractor has to pass its oracles
on the loaded model (section 6). Writes OUT/index.html, figures, tables, run, run-games,
verdict.json and manifest.json; the page links the report of `analyses/before_after.py` where one
lies in OUT/before_after.
"""

import sys

from analyses.options import DirectVsIndirectReport
from analyses.run import command
from analyses.run.arguments import parse


def main() -> int:
    """Measures, unless redrawing, and reports."""
    return command.make_report("direct_vs_indirect", parse(DirectVsIndirectReport, __doc__))


if __name__ == "__main__":
    sys.exit(main())
