"""How faithful is a saliency map, and does the direct path suffice for one?

    python analyses/faithfulness.py                                # embedded model and scenes
    python analyses/faithfulness.py --model Qwen/Qwen2.5-VL-3B-Instruct --limit 100
    python analyses/faithfulness.py --from-run reports/out/faithfulness/run

For every sample and method: the map of the model's own answer, deletion and insertion at 5, 15
and 30 % of the pixels (Table 1 of Saliency-R1), rank agreement with exact patch maps and
occlusion, mass on the evidence, and what the map costs. Writes OUT/index.html, figures, tables, run
and manifest.json.

Methods, by the names of --methods (quoted where they have a space): random, raw attention, rollout,
CAM, Grad-CAM, input × gradient, integrated gradients, AttnLRP, TAM, occlusion; and maps of
contributions and effects: direct, bottleneck, two_hop, effect, edge, slot.
"""

import sys

from analyses.options import FaithfulnessReport
from analyses.run import command
from analyses.run.arguments import parse


def main() -> int:
    """Measures, unless redrawing, and reports."""
    return command.make_report("faithfulness", parse(FaithfulnessReport, __doc__))


if __name__ == "__main__":
    sys.exit(main())
