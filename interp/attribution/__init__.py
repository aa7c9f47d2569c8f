"""Saliency maps by other methods, for comparison (METHODS.md 4): one file each, one signature.

    map = METHODS["rollout"](vlm, sample, target)      # (row, column) on the merged grid

`target` is one of the sample's targets, all tokens of thinking and answer in order: its index
(negative from the end), a role, for its first, or a token that stands once. Every function takes
`completion=` besides, to explain the model's own text. All explain the target's logit in the
centered gauge.
"""

from interp.attribution.attention import raw_attention, rollout
from interp.attribution.cam import cam, grad_cam
from interp.attribution.gradients import input_x_gradient, integrated_gradients
from interp.attribution.noise import random
from interp.attribution.occlusion import occlusion
from interp.attribution.ours import bottleneck, direct, edge, first_order, slot, two_hop
from interp.attribution.relevance import attn_lrp
from interp.attribution.token_activation import tam

OF_KINDS = {
    "direct": "direct (Eq. 1)",
    "bottleneck": "bottleneck (Saliency-R1)",
    "two_hop": "two hops",
    "effect": "first order, integrated",
    "edge": "exact edge",
    "slot": "exact slot",
}
"""What the kinds of `interp.extract.maps` are called beside methods of others."""


class Methods(dict):
    """Methods by name; the kinds of `interp.extract.maps` are names of theirs too."""

    def __missing__(self, name: str):
        if name in OF_KINDS:
            return self[OF_KINDS[name]]
        raise KeyError(f"expected a method of {list(self)} or a kind of {list(OF_KINDS)}: {name!r}")

    def named(self, names) -> list[str]:
        """The names as they are here, without repetitions.

        Raises:
            ValueError: a name of no method.
        """
        unknown = sorted(name for name in names if name not in {*self, *OF_KINDS})
        if unknown:
            raise ValueError(
                f"expected methods of {list(self)}, or by kind {list(OF_KINDS)}, got {unknown}"
            )
        return list(dict.fromkeys(OF_KINDS.get(name, name) for name in names))


METHODS = Methods(
    {
        "random": random,
        "raw attention": raw_attention,
        "rollout": rollout,
        "CAM": cam,
        "Grad-CAM": grad_cam,
        "input × gradient": input_x_gradient,
        "integrated gradients": integrated_gradients,
        "AttnLRP": attn_lrp,
        "TAM": tam,
        "occlusion": occlusion,
        "direct (Eq. 1)": direct,
        "bottleneck (Saliency-R1)": bottleneck,
        "two hops": two_hop,
        "first order, integrated": first_order,
        "exact edge": edge,
        "exact slot": slot,
    }
)

__all__ = ["METHODS"]
