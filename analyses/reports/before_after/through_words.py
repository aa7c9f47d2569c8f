"""The game of METHODS.md 3.7 before and after training, and whose words and weights change it.

On the words that the model itself writes for the image and for its twin; and, for an adapter of the
model before, on that one's words and with its weights, which are the adapter's base.
"""

from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
import xarray as xr
from peft import PeftModel

from analyses.run.recipe import Budget, attempt
from analyses.run.texts import Text, written
from interp.algebra.readout import gauge_logits
from interp.capture.prefill import prefill
from interp.data.sample import Sample
from interp.extract.word_games import Game, alike, prepare
from interp.extract.words import GAUGES, played_numbers
from interp.model.vlm import VLM
from interp.vocabulary import NORMS, PLAYERS, WHOSE

AT = (GAUGES.index("contrast"), NORMS.index("live"))


def relation(vlm: VLM, before: dict | None) -> str:
    """How a model before training is had from one after: "itself", "base", or "" for not at all.

    Args:
        vlm: the model.
        before: settings of the run of the model before; None for that model itself.
    """
    if before is None:
        return "itself"
    is_bare = not before["adapter"] and before["model_hash"] == vlm.fingerprint
    return "base" if is_bare and isinstance(vlm.model, PeftModel) else ""


def games(
    vlm: VLM, samples: list[Sample], own: list[Text], related: str, budget: Budget, limit: int
) -> list[xr.Dataset | Exception]:
    """Owen values on a model's own words, and the total effect by whose weights and words.

    Args:
        vlm: a model, before or after training.
        samples: with their twins; one without has no game.
        own: the model's texts for them.
        related: as `relation` says; where the model before is not had, what needs it is NaN.
        budget: of the texts for the twins, and of those of the model before.
        limit: most tokens of such a text.
    """
    twins = [attempt(_twin, sample) for sample in samples]
    able = [k for k, one in enumerate(twins) if isinstance(one, Sample)]
    asked, partners = [samples[k] for k in able], [twins[k] for k in able]

    def texts(images: list[Sample]) -> list[Text]:
        return written(vlm, images, budget, limit)

    words = {"own": ([own[k] for k in able], texts(partners))}
    if related == "base":
        with vlm.model.disable_adapter():
            words["before"] = texts(asked), texts(partners)
    found = list(twins)
    for place, k in enumerate(able):
        pairs = {name: (both[0][place], both[1][place]) for name, both in words.items()}
        found[k] = attempt(_of_sample, vlm, asked[place], partners[place], pairs, related)
    return found


def _twin(sample: Sample) -> Sample:
    if sample.twin is None:
        raise ValueError(f"{sample.id}: expected a twin for the game through the words, got none")
    return alike(sample, sample.twin)


def _of_sample(vlm: VLM, sample: Sample, twin: Sample, pairs: dict, related: str) -> xr.Dataset:
    """The game of one sample.

    Raises:
        ValueError: as `interp.extract.words`, or a text that could not be written.
    """
    for text in (one for pair in pairs.values() for one in pair):
        if isinstance(text, Exception):
            raise ValueError(f"{sample.id}: {text}")
    ready = {name: prepare(vlm, sample, twin, *pair) for name, pair in pairs.items()}
    ((_, numbers),) = played_numbers([ready["own"]])
    values = {name: np.asarray(numbers[name][1])[0] for name in ("words_owen", "words_total")}
    total = float(values["words_total"][AT])
    effect = np.full((len(WHOSE), len(WHOSE)), total if related == "itself" else np.nan)
    effect[WHOSE.index("own"), WHOSE.index("own")] = total
    for row, weights in enumerate(WHOSE):
        for column, name in enumerate(WHOSE):
            if "before" in ready and "before" in (weights, name):
                with _weights(vlm, weights):
                    effect[row, column] = _total(ready[name])
    variables = {
        "words_owen": (("player",), values["words_owen"][AT[0], :, AT[1]]),
        "words_effect": (("weights_of", "words_of"), effect),
    }
    coords = {"player": list(PLAYERS), "weights_of": list(WHOSE), "words_of": list(WHOSE)}
    return xr.Dataset(variables, coords=coords)


def _weights(vlm: VLM, whose: str) -> AbstractContextManager:
    return vlm.model.disable_adapter() if whose == "before" else nullcontext()


def _total(game: Game) -> float:
    """Log-odds of the two answers with image and words, minus those with the twin's."""
    model = game.vlm.model
    target, foil = (
        torch.tensor([i], device=model.device) for i in (game.outcome.target, game.outcome.foil)
    )
    (own,), (partner,) = game.sides["greedy"]
    both = (game.contexts[own], "own"), (game.contexts[partner], "partner")
    ours, theirs = (
        gauge_logits(
            prefill(model, getattr(one, side), one.rows[:1]).logits, target, "contrast", foil
        )
        for one, side in both
    )
    return float(ours - theirs)
