"""Through the words: the four-path game of an image and its partner (METHODS.md 3.7)."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from interp.algebra import shapley as coalitions
from interp.algebra import words as algebra
from interp.algebra.readout import gauge_logits, gauge_rows
from interp.capture.memory import Load, needed
from interp.data.sample import Sample
from interp.extract.dataset import as_array, shown
from interp.extract.question import check_pair, origin
from interp.extract.two_images import Played, cube, four_paths, frozen, play
from interp.extract.word_games import Game, alike, prepare
from interp.inputs.completions import Completion
from interp.inputs.spelling import token_bytes
from interp.model import families
from interp.model.state import undisturbed
from interp.model.vlm import VLM
from interp.vocabulary import NORMS, PATH_CLASSES, PLAYERS, describe

GAUGES = ("contrast", "centered")
SIDES = ("own", "partner")
MAX_MEMORY = 2 * 2**30


def words(
    vlm: VLM,
    sample: Sample,
    partner: Sample,
    *,
    text: Completion | str | None = None,
    partner_text: Completion | str | None = None,
    n_sampled: int = 0,
    seed: int = 0,
    max_new_tokens: int = 256,
) -> xr.Dataset:
    """Shares of four paths from an image to its answer: three inside a text, and the words.

    The outcome is the log-odds of the data's two answers at the first token where they differ
    (gauge "contrast"), and the centered logit of the sample's own token there. `words_owen` and
    `words_shapley` (player) sum to `words_total`; `words_value` has all sixteen values;
    `words_corner` the model's own forwards; `parting` (path_class) the shares of the choice of the
    first word that differs. Numbers are given for the greedy texts and, where there are any, for
    sampled ones (dimension `drawn`). METHODS.md 3.7.

    Args:
        vlm: the model.
        sample: with an answer and an image.
        partner: the same question about another image, with another answer. Its image is brought
            to the sample's size.
        text, partner_text: the model's own greedy texts, where they are there already.
        n_sampled: texts drawn from the model besides, for either image, at temperature 1.
        seed: of the drawing.
        max_new_tokens: limit of every text.

    Raises:
        ValueError: questions that differ, answers that agree or are not known, several images, or a
            text without a thinking span or an answer.
    """
    check_pair(vlm, sample)
    if not isinstance(partner, Sample):
        raise ValueError(
            f"{sample.id}: expected a Sample as partner, the same question about another image, "
            f"got {type(partner).__name__}; sample.twin is one where the data has it"
        )
    like = alike(sample, partner)
    if text is None or partner_text is None:
        own, other = vlm.answers([sample, like], max_new_tokens=max_new_tokens)
        text, partner_text = text or own, partner_text or other
    drawn = []
    for side, one in enumerate((sample, like)):  # drawn independently of each other
        limit = {"seed": 2 * seed + side, "max_new_tokens": max_new_tokens}
        drawn.append(vlm.sampled(one, n_sampled, **limit) if n_sampled else [])
    ready = prepare(vlm, sample, like, text, partner_text, drawn=tuple(drawn))
    return next(played_games([ready]))


def played_games(games: Iterable[Game], max_memory: int = MAX_MEMORY) -> Iterator[xr.Dataset]:
    """`words` of several games of one model, in order, batches packed into a budget of memory."""
    for game, numbers in played_numbers(games, max_memory):
        yield _labelled(game, numbers)


def played_numbers(
    games: Iterable[Game], max_memory: int = MAX_MEMORY
) -> Iterator[tuple[Game, dict]]:
    """Every game with its variables, (dimensions, values) by name, without labels."""
    waiting: list[Game] = []
    for game in games:
        if waiting and _bytes([*waiting, game]) > max_memory:
            yield from _computed(waiting)
            waiting = []
        waiting.append(game)
    if waiting:
        yield from _computed(waiting)


def _bytes(games: list[Game]) -> int:
    """Upper estimate of the bytes that games need at once: two prefills of every text."""
    model = games[0].vlm.model
    loads = [
        Load(context.own["input_ids"].shape[1], 2, len(coalitions.COALITIONS), False)
        for game in games
        for context in game.contexts
    ]
    return needed(families.parts(model), loads * 2, next(model.parameters()).element_size())


def _computed(games: list[Game]) -> list[tuple[Game, dict]]:
    model = games[0].vlm.model
    all_played = play(model, [context for game in games for context in game.contexts])
    found, start = [], 0
    for game in games:
        own = all_played[start : start + len(game.contexts)]
        start += len(own)
        found.append((game, _numbers(game, own)))
    return found


def _numbers(game: Game, played: list[Played]) -> dict[str, tuple]:
    """Every variable of a game as (dimensions, values)."""
    model = game.vlm.model
    target, foil = (
        torch.tensor([i], device=model.device) for i in (game.outcome.target, game.outcome.foil)
    )
    head, by_draw = families.parts(model).output_embedding, []
    with torch.no_grad(), undisturbed(model):
        g = {name: gauge_rows(head, target, name, foil)[0] for name in GAUGES}
        for own, partner in game.sides.values():
            texts = [played[k] for k in own], [played[k] for k in partner]
            by_draw.append([_variables(model, texts, g[name]) for name in GAUGES])
        found = _corners(game, played, target, foil) | _choice(game, played)
    for name, (dims, _) in by_draw[0][0].items():
        values = np.stack([np.stack([one[name][1] for one in draw]) for draw in by_draw])
        found[name] = (("drawn", "gauge", *dims), values)
    return found


def _labelled(game: Game, numbers: dict[str, tuple]) -> xr.Dataset:
    tokenizer = game.vlm.processor.tokenizer
    sides = game.sides
    facts = {
        "n_texts": (("drawn", "text_side"), [list(map(len, one)) for one in sides.values()]),
        "has_same_words": ((), sides["greedy"][0] == sides["greedy"][1]),
        "outcome_token": ((), _spelled(tokenizer, game.outcome.target)),
        "foil_token": ((), _spelled(tokenizer, game.outcome.foil)),
    }
    coords = {
        "player": list(PLAYERS),
        "path_class": list(PATH_CLASSES),
        "gauge": list(GAUGES),
        "norm": list(NORMS),
        "drawn": list(sides),
        "image_side": list(SIDES),
        "text_side": list(SIDES),
    }
    dataset = describe(xr.Dataset(numbers | facts, coords=coords))
    attributes = origin(game.vlm, game.sample, None)
    del attributes["text_is_complete"]  # of several texts, read as far as their answers' first part
    dataset.attrs = attributes | {
        "text_source": "own",
        "partner": game.partner.id,
        "dtype": str(game.vlm.model.dtype).removeprefix("torch."),
    }
    return dataset


def _variables(model, texts: tuple[list[Played], list[Played]], g: Tensor) -> dict[str, tuple]:
    """Every variable of the game in one gauge."""
    readings = four_paths(model, *texts, g)
    found = algebra.shares(readings["pattern and values"])
    strict = algebra.shares(readings["values"])
    players = ("player", "norm")
    return {
        "words_total": (("norm",), as_array(found.total)),
        "words_owen": (players, as_array(found.owen)),
        "words_owen_strict": (players, as_array(strict.owen)),
        "words_shapley": (players, as_array(found.shapley)),
        "words_shapley_strict": (players, as_array(strict.shapley)),
        "words_interaction": (("norm",), as_array(found.interaction)),
        "words_value": (("p1", "p2", "p3", "p4", "norm"), as_array(readings["pattern and values"])),
    }


def _corners(game: Game, played: list[Played], target: Tensor, foil: Tensor) -> dict:
    """The model's own forwards: each image behind each image's greedy text, by gauge."""
    (own,), (partner,) = game.sides["greedy"]
    values = [
        [
            [
                float(gauge_logits(played[text].logits[image][:1], target, name, foil)[0])
                for text in (own, partner)
            ]
            for image in (0, 1)
        ]
        for name in GAUGES
    ]
    return {"words_corner": (("gauge", "image_side", "text_side"), values)}


def _choice(game: Game, played: list[Played]) -> dict:
    """Shares of the choice of the first word that differs; NaN where the texts are the same."""
    n_norms = len(NORMS)
    values = torch.full((len(PATH_CLASSES), n_norms), torch.nan)
    if game.parted is not None:
        head = families.parts(game.vlm.model).output_embedding
        w, other = (torch.tensor([i], device=game.vlm.device) for i in game.parted)
        g = gauge_rows(head, w, "contrast", other)[0]
        u = frozen(game.vlm.model, g, played[0], 1)
        found = cube(game.vlm.model, played[0], 1, g, u)["pattern and values"]
        values = coalitions.split(found).shapley
    return {
        "parting": (("path_class", "norm"), as_array(values)),
        "parting_total": (("norm",), as_array(values.sum(dim=0))),
    }


def _spelled(tokenizer, token_id: int) -> str:
    return shown(token_bytes(tokenizer, [token_id])[0].decode("utf-8", errors="replace"))
