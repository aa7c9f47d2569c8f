"""Two images behind one prompt and text: rows in the coalitions of both (METHODS.md 3.7)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.algebra import shapley as coalitions
from interp.algebra import words as algebra
from interp.algebra.ledger import readout_vectors
from interp.algebra.readout import value_biases
from interp.capture.prefill import prefills
from interp.capture.replay import replays
from interp.capture.slots import reading
from interp.model import families
from interp.model.state import undisturbed


@dataclass(frozen=True)
class Context:
    """One text behind the prompt, with each of two images, whose tokens are at the same place."""

    own: Mapping[str, Tensor]
    partner: Mapping[str, Tensor]
    rows: Int[Tensor, " target"]
    """Rows whose next token is in question: the answer's, then that at which the texts part."""


@dataclass(frozen=True)
class Played:
    """One text's rows in the coalitions of METHODS.md 3.3, before they are read out."""

    final: Float[Tensor, "variant target d_model"]
    written: Float[Tensor, "a b value target d_model"]
    logits: tuple[Float[Tensor, "target vocabulary"], Float[Tensor, "target vocabulary"]]
    """The model's own forward with the image, and with the partner's."""


def play(model: nn.Module, contexts: list[Context]) -> list[Played]:
    """The rows of every context in four coalitions, in two prefills and one replay for all."""
    rows = [one.rows for one in contexts]
    with torch.no_grad(), undisturbed(model):
        parts = families.parts(model)
        own = prefills(model, [one.own for one in contexts], rows)
        partner = prefills(model, [one.partner for one in contexts], rows)
        is_image = [one.own["input_ids"][0] == parts.image_token_id for one in contexts]
        variants = [
            reading(coalitions.coalition_runs(mine), len(one))
            for mine, one in zip(is_image, rows, strict=True)
        ]
        replayed = replays(model, own, rows, variants, others=(partner,))
        biases = value_biases(parts, torch.promote_types(model.dtype, torch.float32))
        played = []
        for k, one in enumerate(replayed):
            runs = own.sequences[k], partner.sequences[k]
            tokens = torch.arange(len(is_image[k]), device=rows[k].device)
            before = is_image[k] & (tokens < rows[k][:, None])
            written = coalitions.writes(parts, biases, runs, one, before)
            played.append(Played(one.final, written, (runs[0].logits, runs[1].logits)))
    return played


@torch.no_grad()
def cube(
    model: nn.Module, played: Played, target: int, g: Tensor, u: Tensor
) -> dict[str, Float[Tensor, "p1 p2 p3 norm"]]:
    """The eight values of one text at one of its rows, for both readings of "direct"."""
    parts, at = families.parts(model), slice(target, target + 1)
    found = coalitions.cubes(
        parts, g[None], u[None], played.final[:, at], played.written[..., at, :]
    )
    return {name: values[..., 0] for name, values in found.items()}


@torch.no_grad()
def frozen(model: nn.Module, g: Tensor, played: Played, target: int) -> Tensor:
    """u of the frozen norm: that of the image's own run at the row."""
    parts, final = families.parts(model), played.final[-1, target].to(g.dtype)
    return readout_vectors(g[None], final[None], parts.norm_weight.to(g.dtype), parts.epsilon)[0]


@torch.no_grad()
def four_paths(
    model: nn.Module, own: list[Played], partner: list[Played], g: Tensor
) -> dict[str, Float[Tensor, "p1 p2 p3 p4 norm"]]:
    """The game of two sides of texts, mean over the texts of each, for both readings of "direct".

    The frozen norm is that of the first own text with the image.
    """
    u = frozen(model, g, own[0], 0)
    means = [[cube(model, one, 0, g, u) for one in side] for side in (partner, own)]
    return {
        name: algebra.game(
            *(torch.stack([one[name] for one in side]).mean(dim=0) for side in means)
        )
        for name in means[0][0]
    }
