"""Node effects: what a target loses when the content of S is another (METHODS.md 3.2).

A reference run has other embeddings at S. Two replays of row i: step 1 (superscript 1) reads S's
slots from the reference run and all others from the clean one; step 2 reads everything from it.
With v without b_v, summed over l and j:

    total    = f − f² = direct + routing + mediated + self + ffn + norm
    direct   = Σ_{p∈S} α u·W_o (v_p − v'_p)       values of S under the clean pattern
    routing  = Σ_{p≤i} (α − α¹) u·W_o v¹_p         the pattern; v¹ is what step 1 reads
    self     = α_ii u·W_o (v_i − v¹_i)              earlier layers at i
    ffn      = Σ_l u·(F − F¹)
    norm     = (u − u¹)·h¹
    mediated = f¹ − f²                               through other positions

`mediated` comes apart by switching the other positions role by role, in text order.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.algebra.effects import clean_against
from interp.algebra.ledger import own_scores, project, slot_scores
from interp.algebra.readout import Readout
from interp.capture.prefill import Prefill
from interp.capture.replay import Replay
from interp.model.parts import Parts


@dataclass(frozen=True)
class NodeEffects:
    """The split of the effect of one reference on T targets."""

    total: Float[Tensor, " target"]
    paths: Float[Tensor, "path target"]
    """As `interp.vocabulary.NODE_PATHS`."""
    by_role: Float[Tensor, "role target"]
    """`mediated`, by the roles that were switched one after the other."""
    alone: Float[Tensor, " target"]
    """f minus f with all others switched and S clean: mediated, if it comes first in order."""


def node_runs(
    is_source: Bool[Tensor, " token"], roles: list[Bool[Tensor, " token"]]
) -> Int[Tensor, "variant token"]:
    """Which run (0 clean, 1 reference) each variant reads each slot from.

    Clean; S alone from the reference (step 1); all but S from it; then from step 1 on role after
    role, which ends in step 2.
    """
    switched = [torch.zeros_like(is_source), is_source, ~is_source]
    for number in range(len(roles)):
        switched.append(is_source | torch.stack(roles[: number + 1]).any(dim=0))
    return torch.stack(switched).long()


def node_effects(
    parts: Parts,
    readout: Readout,
    runs: tuple[Prefill, Prefill],
    played: Replay,
    is_source: Bool[Tensor, " token"],
    rows: Int[Tensor, " target"],
) -> NodeEffects:
    """The effect ledger of a reference; `played` has the variants of `node_runs`."""
    total, norm = clean_against(parts, readout, played)
    step1 = played.of(lambda tensor: tensor[:2])
    direct, routing, self_, ffn, _ = slot_effects(
        parts, readout, runs, step1, rearrange(is_source, "p -> 1 p"), rows
    )[:, 0]
    # total[k] belongs to variant k + 1: 0 is step 1, 1 has S clean, then role after role.
    by_role = torch.diff(torch.cat([total[:1], total[2:]]), dim=0)
    mediated = total[-1] - total[0]
    paths = torch.stack([direct, routing, mediated, self_, ffn, norm[0]])
    return NodeEffects(total[-1], paths, by_role, total[1])


def slot_effects(
    parts: Parts,
    readout: Readout,
    runs: tuple[Prefill, Prefill],
    played: Replay,
    is_source: Bool[Tensor, "source_set token"],
    rows: Int[Tensor, " target"],
) -> Float[Tensor, "path source_set target"]:
    """Step 1 alone, for several sets: their slots read from the reference run, all others clean.

    Returns the paths of `interp.vocabulary.SLOT_PATHS`; they sum to f minus f of each variant
    behind the first, which is clean.
    """
    _, norm = clean_against(parts, readout, played)
    layers = [
        _layer(readout, runs, played, is_source, rows, layer) for layer in range(parts.n_layers)
    ]
    return torch.cat([torch.stack(layers).sum(dim=0), norm[None]])


def _layer(
    readout: Readout,
    runs: tuple[Prefill, Prefill],
    played: Replay,
    is_source: Bool[Tensor, "source_set token"],
    rows: Int[Tensor, " target"],
    layer: int,
) -> Float[Tensor, "part source_set target"]:
    """direct, routing, self and ffn of one layer."""
    folded, bias = readout.folded[layer], readout.biases[layer]
    clean, reference = (slot_scores(folded, readout.values(run, layer)) for run in runs)
    own = own_scores(folded, played.own_values[layer].to(folded.dtype) - bias)
    weights = played.shares(layer)
    change = weights[0] - weights[1:]
    is_own = torch.zeros_like(clean[:, 0]).scatter(1, rearrange(rows, "t -> t 1"), 1.0)
    source_mask = rearrange(is_source.to(folded.dtype), "s p -> s 1 p") * (1 - is_own)
    direct = torch.einsum("thp,thp,stp->st", weights[0], clean - reference, source_mask)
    routing = torch.einsum("sthp,thp,tp->st", change, clean, 1 - is_own)
    routing = routing + torch.einsum("sthp,thp,stp->st", change, reference - clean, source_mask)
    own_weight = torch.einsum("vthp,tp->vth", weights, is_own)
    routing = routing + ((own_weight[0] - own_weight[1:]) * own[1:]).sum(dim=-1)
    self_ = (own_weight[0] * (own[0] - own[1:])).sum(dim=-1)
    ffn = played.ffn[layer].to(folded.dtype)
    return torch.stack([direct, routing, self_, project(readout.vectors, ffn[0] - ffn[1:])])
