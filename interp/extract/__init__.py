"""The calls that analyses, notebooks and rewards share: model and text in, labelled dataset out.

Most take either a `VLM` and a `Sample`, or a Hugging Face model and the processor's batch of one
sequence; `maps`, `pixel_effects`, `references` and `words` need the VLM's processor. In the first
form the targets are all tokens of thinking and answer, in the second `positions` (rows of
`input_ids`, padding counted) and `targets` (token ids; without them, the tokens that follow) say
what to explain. `each` takes many samples, in batches.
"""

from interp.extract.alternatives import alternatives
from interp.extract.each import each
from interp.extract.effects import effects
from interp.extract.first_order import first_order
from interp.extract.heads import heads
from interp.extract.ledger import ledger
from interp.extract.maps import maps
from interp.extract.node_effects import node_effects
from interp.extract.origins import origins
from interp.extract.patch_effects import patch_effects
from interp.extract.pixel_effects import pixel_effects
from interp.extract.references import references
from interp.extract.residual import residual
from interp.extract.shapley import shapley
from interp.extract.words import words

__all__ = [
    "alternatives",
    "each",
    "effects",
    "first_order",
    "heads",
    "ledger",
    "maps",
    "node_effects",
    "origins",
    "patch_effects",
    "pixel_effects",
    "references",
    "residual",
    "shapley",
    "words",
]


def __dir__():
    return sorted(__all__)
