"""First-order maps: every patch's effect at every layer from one backward pass (METHODS.md 3.4).

    τ_{l,p} = ⟨∂f/∂(write of edge (l, p) at row i), write⟩ = Σ_j α_{i,j,p} G_i^l · W_o v_p

with G_i^l the gradient of f at the attention output of layer l, and the write without its value
bias. In a replay the other positions are constants and rows meet only at their own position, so one
backward pass of the sum over targets serves all rows. Gradient × write at the clean run saturates;
integrated along t ∈ (0, 1), the factor on S's values, at Gauss-Legendre nodes,

    Σ_{l, p∈S} τ_{l,p} + bias part = f − f̃    of the joint edge cut

up to the quadrature's completeness error. The objectives Σ_l u·F_l and Σ_l u·A_l (u frozen) split
it exactly into what FFNs and what attention write.
"""

from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from interp.algebra.ledger import bias_scores, project, readout_vectors, slot_scores
from interp.algebra.readout import Readout, fold_output
from interp.capture.prefill import Prefill
from interp.capture.replay import Replay
from interp.model.parts import Parts

ENDS = (1.0, 0.0)  # the clean run and the joint cut


@dataclass(frozen=True)
class FirstOrder:
    """First-order maps of T targets over one source set."""

    writes: Float[Tensor, "objective layer target token"]
    """τ as `interp.vocabulary.OBJECTIVES`; 0 outside the source set."""
    bias: Float[Tensor, "objective target"]
    """The part of the value biases, all edges together."""


def quadrature(n_nodes: int, device) -> tuple[Float[Tensor, " node"], Float[Tensor, " node"]]:
    """Factors t and their weights; without nodes t = 1 alone."""
    if n_nodes == 0:
        return torch.ones(1, device=device), torch.ones(1, device=device)
    nodes, weights = np.polynomial.legendre.leggauss(n_nodes)
    return tuple(torch.from_numpy(one).to(device) for one in ((nodes + 1) / 2, weights / 2))


def objective(
    parts: Parts, readout: Readout, played: Replay, name: str
) -> Float[Tensor, "variant target"]:
    """f with the live norm, Σ_l u·F_l or Σ_l u·A_l: one of `interp.vocabulary.OBJECTIVES`."""
    dtype = readout.vectors.dtype
    if name != "total":
        written = played.ffn if name == "ffn" else played.attention
        return sum(project(readout.vectors, one.to(dtype)) for one in written)
    final = played.final.to(dtype)
    gauge_rows = repeat(readout.gauge_rows, "t d -> v t d", v=len(final))
    live = readout_vectors(gauge_rows, final, parts.norm_weight.to(dtype).detach(), parts.epsilon)
    return project(live, final)


@dataclass(frozen=True)
class Cut:
    """The joint cut of one sequence's source set, played at the nodes."""

    readout: Readout
    context: Prefill
    played: Replay
    """The nodes, with gradients."""
    is_source: Float[Tensor, "target token"]
    """S ∩ {p < i}."""


def first_order(
    parts: Parts, cuts: list[Cut], node_weights: Float[Tensor, " node"], objectives: tuple[str, ...]
) -> list[FirstOrder]:
    """The maps of all targets of all sequences of one replay: one backward pass per objective.

    Args:
        parts: the model's parts.
        cuts: of each sequence.
        node_weights: of the quadrature.
        objectives: of `interp.vocabulary.OBJECTIVES`.
    """
    by_cut: list[list] = [[] for _ in cuts]
    for name in objectives:
        value = sum(objective(parts, cut.readout, cut.played, name).sum() for cut in cuts)
        gradients = torch.autograd.grad(value, cuts[0].played.whole, retain_graph=True)
        for pairs, cut in zip(by_cut, cuts, strict=True):
            by_layer = [_layer(parts, cut, gradient, n) for n, gradient in enumerate(gradients)]
            write, bias = (torch.stack(column) for column in zip(*by_layer, strict=True))
            weights = node_weights.to(write)
            pairs.append(
                (
                    torch.einsum("lvtp,v,tp->ltp", write, weights, cut.is_source),
                    torch.einsum("lvtp,v,tp->t", bias, weights, cut.is_source),
                )
            )
    return [FirstOrder(*(torch.stack(x) for x in zip(*pairs, strict=True))) for pairs in by_cut]


def _layer(
    parts: Parts, cut: Cut, gradient: Tensor, layer: int
) -> tuple[Float[Tensor, "variant target token"], Float[Tensor, "variant target token"]]:
    """⟨G, α W_o v⟩ and ⟨G, α W_o b_v⟩ of every edge of one layer, heads summed."""
    gradient, bias = cut.played.own(gradient), cut.readout.biases[layer]
    n_variants = len(gradient)
    folded = fold_output(parts, layer, rearrange(gradient.to(bias.dtype), "v t d -> (v t) d"))
    values = cut.readout.values(cut.context, layer)
    weights = rearrange(cut.played.weights[layer].detach(), "v t h p -> (v t) h p")
    write = torch.einsum("nhp,nhp->np", weights, slot_scores(folded, values))
    of_bias = torch.einsum("nhp,nh->np", weights, bias_scores(folded, bias))
    return tuple(rearrange(x, "(v t) p -> v t p", v=n_variants) for x in (write, of_bias))
