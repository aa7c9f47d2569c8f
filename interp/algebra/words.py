"""Through the words: the game of four players (METHODS.md 3.7).

The text before an answer is a player beside the three classes of paths of METHODS.md 3.3. With
t = 1 the words are those written for the image, with t = 0 those for its partner. A game has the
axes p1, p2, p3, p4 first, each 0 (the partner's) then 1.
"""

from dataclasses import dataclass
from itertools import permutations

import torch
from jaxtyping import Float
from torch import Tensor

from interp.algebra.shapley import split

N_PLAYERS = 4


@dataclass(frozen=True)
class Shares:
    """Shares of the four players, as the sixteen values of a game give them."""

    total: Float[Tensor, "..."]
    owen: Float[Tensor, "player ..."]
    """The Owen value with the union {P1, P2, P3}; sums to the total."""
    shapley: Float[Tensor, "player ..."]
    """The Shapley value of all four, each in every order; sums to the total."""
    interaction: Float[Tensor, "..."]
    """v(1,1,1,1) − v(1,1,1,0) − v(0,0,0,1) + v(0,0,0,0): of the image and the words."""


def game(
    partner_words: Float[Tensor, "p1 p2 p3 ..."], own_words: Float[Tensor, "p1 p2 p3 ..."]
) -> Float[Tensor, "p1 p2 p3 p4 ..."]:
    """The game of two cubes of METHODS.md 3.3, one for each side's words."""
    return torch.stack([partner_words, own_words], dim=3)


def shares(v: Float[Tensor, "p1 p2 p3 p4 ..."]) -> Shares:
    """Owen and Shapley values of a game, and the interaction of the image with the words."""
    full, empty = v[1, 1, 1, 1], v[0, 0, 0, 0]
    other_words, other_image = v[1, 1, 1, 0], v[0, 0, 0, 1]
    inside = (split(v[:, :, :, 1]).shapley + split(v[:, :, :, 0]).shapley) / 2
    through = (full - other_words + other_image - empty) / 2
    return Shares(
        total=full - empty,
        owen=torch.cat([inside, through[None]]),
        shapley=shapley_values(v),
        interaction=full - other_words - other_image + empty,
    )


def shapley_values(v: Float[Tensor, "p1 p2 p3 p4 ..."]) -> Float[Tensor, "player ..."]:
    """Mean over all orders of what each of the four players adds."""
    orders = list(permutations(range(N_PLAYERS)))
    values = v.new_zeros(N_PLAYERS, *v.shape[N_PLAYERS:])
    for order in orders:
        at = [0] * N_PLAYERS
        for player in order:
            before = v[tuple(at)]
            at[player] = 1
            values[player] += (v[tuple(at)] - before) / len(orders)
    return values
