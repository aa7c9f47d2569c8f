"""Order-free shares: Shapley values over three classes of paths into row i (METHODS.md 3.3).

Classed by the last edge into the row: P1, the direct write of S with its own pattern,
W(r, b) = Σ_{l,j,p∈S} α_p(r, b) W_o v_p^r; P2, everything else at the row that reads S's slots; P3,
the slots of the other positions. In coalition run (a, b) the row reads S's slots from run a (0 the
reference, 1 clean) and the others from run b; a' says from which run P1's write comes:

    v(a', a, b) = f( h(a, b) − W(a, b) + W(a', b) )

with the row's own RMS (live norm) or the clean one (frozen: u·h). The strict reading keeps the
pattern of (a, b) in P1's write, so that only the values count as direct. Axes of a cube of eight
values, in this order: a', a, b, each 0 then 1.
"""

from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.algebra.ledger import project, readout_vectors
from interp.algebra.readout import Readout
from interp.algebra.readout import written as write_of_heads
from interp.capture.prefill import Prefill
from interp.capture.replay import Replay
from interp.model.parts import Parts

COALITIONS = ((0, 0), (0, 1), (1, 0), (1, 1))  # (a, b): the variants of the replay, in order


@dataclass(frozen=True)
class Split:
    """Shares and interactions that a cube of eight values v(a', a, b) gives."""

    total: Float[Tensor, "*rest"]
    shapley: Float[Tensor, "path_class ..."]
    """As `interp.vocabulary.PATH_CLASSES`; sums to the total."""
    interactions: Float[Tensor, "pair ..."]
    """Shapley interaction index, as `interp.vocabulary.PAIRS`."""
    pnde: Float[Tensor, "*rest"]
    tnde: Float[Tensor, "*rest"]
    pnie: Float[Tensor, "*rest"]
    tnie: Float[Tensor, "*rest"]
    interaction: Float[Tensor, "*rest"]
    """total − pnde − pnie."""


def coalition_runs(is_source: Bool[Tensor, " token"]) -> Int[Tensor, "variant token"]:
    """Which run (0 clean, 1 reference) each coalition reads each slot from."""
    runs = [torch.where(is_source, 1 - a, 1 - b) for a, b in COALITIONS]
    return torch.stack(runs)


def writes(
    parts: Parts,
    biases: list[Float[Tensor, "kv_head d_head"]],
    runs: tuple[Prefill, Prefill],
    played: Replay,
    is_source: Bool[Tensor, "target token"],
) -> Float[Tensor, "a b value target d_model"]:
    """Σ_{l,j,p∈S} α_p(a, b) W_o v_p of each coalition's pattern and each run's values.

    Index 0 of `value` is the reference, as of a and b; v is without its bias.

    Args:
        parts, biases: the model's parts and value biases.
        runs: the clean run and the reference.
        played: the coalitions.
        is_source: S ∩ {p < i}.
    """
    written = None
    for layer in range(parts.n_layers):
        bias = rearrange(biases[layer], "kv d -> kv 1 d")
        values = [run.values[layer][0].to(bias.dtype) - bias for run in reversed(runs)]
        weights = played.shares(layer) * rearrange(is_source, "t p -> 1 t 1 p")
        weights = rearrange(weights, "c t (kv g) p -> kv (c t g) p", kv=len(bias))
        read = torch.stack([weights @ value for value in values])
        read = rearrange(
            read, "r kv (c t g) d -> c r t (kv g d)", c=len(COALITIONS), t=len(is_source)
        )
        write = write_of_heads(parts, layer, read)
        written = write if written is None else written + write
    return rearrange(written, "(a b) r t d -> a b r t d", a=2)


def cubes(
    parts: Parts,
    gauge_rows: Float[Tensor, "target d_model"],
    vectors: Float[Tensor, "target d_model"],
    final: Float[Tensor, "variant target d_model"],
    written: Float[Tensor, "a b value target d_model"],
) -> dict[str, Float[Tensor, "p1 p2 p3 norm target"]]:
    """v(a', a, b) under the live and the frozen norm, for both readings of "direct".

    Args:
        parts: the model's parts.
        gauge_rows, vectors: g, and u of the frozen norm.
        final: states of the coalitions before the final norm.
        written: as `writes` gives them.

    Returns:
        "pattern and values", W as above, and "values", the strict reading.
    """
    final = rearrange(final.to(written.dtype), "(a b) t d -> a b t d", a=2)
    own = torch.stack([written[a, :, a] for a in range(2)])  # W(a, b)
    rest = final - own
    swapped = {
        "pattern and values": rest + rearrange(own, "q b t d -> q 1 b t d"),
        "values": rest + rearrange(written, "a b q t d -> q a b t d"),
    }
    return {
        name: _both_norms(parts, gauge_rows, vectors, states) for name, states in swapped.items()
    }


def _both_norms(
    parts: Parts,
    gauge_rows: Float[Tensor, "target d_model"],
    vectors: Float[Tensor, "target d_model"],
    states: Float[Tensor, "p1 p2 p3 target d_model"],
) -> Float[Tensor, "p1 p2 p3 norm target"]:
    rows = repeat(gauge_rows, "t d -> q a b t d", q=2, a=2, b=2)
    live = readout_vectors(rows, states, parts.norm_weight.to(states.dtype), parts.epsilon)
    projections = torch.stack([project(live, states), project(vectors, states)])
    return rearrange(projections, "norm q a b t -> q a b norm t")


def split(cube: Float[Tensor, "p1 p2 p3 ..."]) -> Split:
    """Shapley values, interactions and natural effects of eight values."""
    total = cube[1, 1, 1] - cube[0, 0, 0]
    pnde, tnde = cube[1, 0, 0] - cube[0, 0, 0], cube[1, 1, 1] - cube[0, 1, 1]
    pnie, tnie = cube[0, 1, 1] - cube[0, 0, 0], cube[1, 1, 1] - cube[1, 0, 0]
    values = torch.stack([_shapley_value(cube, player) for player in range(3)])
    pairs = torch.stack([_interaction_index(cube, third) for third in (2, 1, 0)])
    return Split(total, values, pairs, pnde, tnde, pnie, tnie, total - pnde - pnie)


def _shapley_value(cube: Tensor, player: int) -> Tensor:
    """Mean over all orders of what the player adds."""
    gain = cube.select(player, 1) - cube.select(player, 0)
    return gain[0, 0] / 3 + (gain[0, 1] + gain[1, 0]) / 6 + gain[1, 1] / 3


def _interaction_index(cube: Tensor, third: int) -> Tensor:
    """Interaction index of two players, mean over the third's two states."""
    face = cube.movedim(third, 0)
    return (face[:, 1, 1] - face[:, 1, 0] - face[:, 0, 1] + face[:, 0, 0]).mean(dim=0)


def write_parts(
    readout: Readout, written: Float[Tensor, "a b value target d_model"]
) -> Float[Tensor, "part target"]:
    """φ₁ of the frozen norm in two: what changed values and what a changed pattern add.

    Both orders and both b averaged; their sum is mean_b u·(W(1, b) − W(0, b)).
    """
    scores = project(readout.vectors, written).mean(dim=1)  # (a, value, target)
    values = (scores[:, 1] - scores[:, 0]).mean(dim=0)
    pattern = (scores[1] - scores[0]).mean(dim=0)
    return torch.stack([values, pattern])
