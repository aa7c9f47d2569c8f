"""Maps that are read off attention rows: Eq. 1, and the two ways through the thinking text."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.algebra import released_code, thinking
from interp.algebra.readout import Readout, read_out
from interp.capture.replay import Replay, replay
from interp.extract.ledger import account
from interp.extract.prefilled import Asked
from interp.extract.question import REPLAY_BYTES
from interp.model.state import undisturbed

THROUGH_THINKING = ("bottleneck", "two_hop")


def seen(prefilled: Asked, played: Replay) -> Float[Tensor, " target"]:
    """The share of attention that each target's row pays to visual tokens, in the clean run."""
    is_visual = prefilled.query.is_visual
    shares = [one[0][..., is_visual].float().sum(dim=-1).mean(dim=-1) for one in played.weights]
    return torch.stack(shares).mean(dim=0)


def part_of(played: Replay, rows: slice) -> Replay:
    """Some rows of a replay."""
    return played.of(lambda tensor: tensor[:, rows])


def attention_maps(
    prefilled: Asked,
    kinds: list[str],
    variant: str,
    played: Replay,
    looking: Replay | None = None,
) -> dict:
    """kind -> (target, token) scores and whether each target's map is defined.

    A replay of the thinking rows is made where it is not given.
    """
    if not kinds:
        return {}
    query = prefilled.query
    with torch.no_grad(), undisturbed(query.model):
        readout = read_out(query.parts, prefilled.gauge_rows, played.final[0])
        everywhere = torch.ones(len(query.rows), dtype=torch.bool, device=query.rows.device)
        maps_by_kind = {}
        if "direct" in kinds:
            if variant == "release":
                weights = [played.shares(n)[0] for n in range(query.parts.n_layers)]
                maps_by_kind["direct"] = _released(prefilled, played, weights), everywhere
            else:
                all_targets = torch.arange(len(query.rows), device=query.rows.device)
                scores = account(prefilled, all_targets, played, "tokens", False)["direct"][1]
                maps_by_kind["direct"] = scores, everywhere
        through = [kind for kind in kinds if kind in THROUGH_THINKING]
        if through:
            maps_by_kind |= through_thinking(prefilled, played, readout, through, variant, looking)
    return maps_by_kind


def through_thinking(
    prefilled: Asked,
    played: Replay,
    readout: Readout,
    kinds: list[str],
    variant: str,
    looking: Replay | None = None,
) -> dict:
    """Maps that are sums over thinking tokens, some of them at a time unless they are played."""
    query, parts, context = prefilled.query, prefilled.query.parts, prefilled.context
    columns = thinking_columns(prefilled, kinds)
    size = max(1, REPLAY_BYTES // (4 * parts.n_layers * parts.n_heads * len(query.tokens.ids)))
    size = size if looking is None else len(columns)
    totals = dict.fromkeys(kinds, 0.0)
    products = [0.0] * parts.n_layers
    for part in columns.split(size):
        rows = looking_rows(part, variant)
        hops = thinking.Hops(
            targets=played,
            thinking=replay(query.model, context, rows) if looking is None else looking,
            embeddings=context.levels[0, rows],
            columns=part,
            is_between=part < query.rows[:, None],
        )
        if variant == "release":
            products = [one + thinking.product(hops, n) for n, one in enumerate(products)]
            continue
        if "bottleneck" in kinds:
            totals["bottleneck"] = totals["bottleneck"] + thinking.bottleneck(
                readout, context, hops
            )
        if "two_hop" in kinds:
            totals["two_hop"] = totals["two_hop"] + thinking.two_hops(parts, readout, context, hops)
    if variant == "release":
        totals["bottleneck"] = _released(prefilled, played, products)
    is_defined = (columns < query.rows[:, None]).any(dim=1)
    return {kind: (scores, is_defined) for kind, scores in totals.items()}


def looking_rows(columns: Tensor, variant: str) -> Tensor:
    """Rows at which thinking tokens look: their own, or in the release those that predict them."""
    return columns - 1 if variant == "release" else columns


def thinking_columns(prefilled: Asked, kinds: list[str]) -> Tensor:
    """Positions of the thinking tokens; none where no map goes through them."""
    roles = np.array(prefilled.query.tokens.role)
    asked = [kind for kind in kinds if kind in THROUGH_THINKING]
    columns = np.flatnonzero((roles == "thinking") & bool(asked))
    if asked and len(columns) == 0:
        raise ValueError(
            f"{prefilled.query.attributes['sample']}: expected a text with a thinking span for "
            f"maps of {asked}, got none; leave the sample out or ask for other kinds"
        )
    return torch.from_numpy(columns).to(prefilled.query.rows.device)


def _released(prefilled: Asked, played: Replay, weights: list) -> Float[Tensor, "target token"]:
    """The release's scores of the visual tokens, one target after the other."""
    query, dtype = prefilled.query, prefilled.gauge_rows.dtype
    sources = query.is_visual.nonzero()[:, 0]
    scores = prefilled.gauge_rows.new_zeros(len(query.rows), len(query.tokens.ids))
    for k in range(len(query.rows)):
        target_weights = [one[k : k + 1][..., sources] for one in weights]
        written = released_code.released_writes(
            query.parts, prefilled.context, target_weights, sources, dtype
        )
        scores[k : k + 1, sources] = released_code.as_released(
            query.parts, prefilled.gauge_rows[k : k + 1], played.final[0][k : k + 1], written
        )
    return scores
