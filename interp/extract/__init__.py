"""The calls that analyses, notebooks and rewards share: model and text in, labelled dataset out.

Every function takes either a `VLM` and a `Sample`, or a Hugging Face model and the processor's
batch of one sequence. In the first form the targets are all tokens of thinking and answer, in the
second `positions` (rows of `input_ids`, padding counted) and `targets` (token ids; without them,
the tokens that follow) say what to explain. `each` takes many samples, in batches.
"""

from interp.extract.batches import each
from interp.extract.depth import origins
from interp.extract.edges import effects
from interp.extract.gradients import first_order
from interp.extract.ledger import ledger
from interp.extract.nodes import node_effects
from interp.extract.patches import patch_effects
from interp.extract.paths import shapley
from interp.extract.saliency import maps
from interp.extract.stream import residual
from interp.references import references

__all__ = [
    "each",
    "effects",
    "first_order",
    "ledger",
    "maps",
    "node_effects",
    "origins",
    "patch_effects",
    "references",
    "residual",
    "shapley",
]
