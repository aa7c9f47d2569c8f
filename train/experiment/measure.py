"""Answers of a model on held-out scenes, and what they rest on: a row by scene."""

import logging
from collections.abc import Callable

import numpy as np
import pandas as pd

import interp
from interp.data.sample import Sample
from interp.extract.effects import effects
from interp.extract.pixel_effects import pixel_effects
from interp.extract.question import ask
from interp.extract.references import Pool, references
from interp.extract.shapley import shapley
from interp.extract.sharing import sharing
from interp.extract.word_games import Game, alike, prepare
from interp.extract.words import GAUGES, played_numbers
from interp.faithfulness import faithfulness
from interp.inputs.completions import Completion, completion, is_right
from interp.inputs.outcomes import outcome, words_of
from interp.inputs.prompts import text_ids
from interp.maps.alignment import alignment_scores
from interp.maps.grid import holistic
from interp.measures import normalised
from interp.model.state import undisturbed
from interp.model.vlm import VLM
from interp.vocabulary import NORMS, PATH_CLASSES, PLAYERS

log = logging.getLogger("experiment")
BATCH = 32
SETS = ("evidence", "background")
KINDS = ("direct", "bottleneck", "effect")
PAINTED = ("pixels", "vector")
N_COSTLY = 50
"""Scenes on which images are changed and painted; on the others these measures are NaN."""
MAX_NEW_TOKENS = 64
PRECISION = 6


def ordinary(vlm: VLM, samples: list[Sample]) -> pd.DataFrame:
    """The answer, and everything that the answer rests on."""
    texts = _written(vlm, samples)
    table = _answers(samples, texts)
    mean = Pool(vlm, samples)
    columns: list[dict] = []
    for k, (sample, text) in enumerate(zip(samples, texts, strict=True)):
        with sharing(), undisturbed(vlm.model):
            row = _uses(vlm, sample, mean) | _aligned(vlm, sample)
            if k < N_COSTLY:
                row |= _tried(_painted, vlm, sample) | _tried(_changed, vlm, sample, text)
        columns.append(row)
    games = pd.DataFrame(_games(vlm, samples, texts))
    return pd.concat([table, pd.DataFrame(columns), games], axis=1)


def uses(vlm: VLM, samples: list[Sample]) -> pd.DataFrame:
    """The answer, and the exact effects of evidence and background on it."""
    mean = Pool(vlm, samples)
    rows = []
    for sample in samples:
        with sharing(), undisturbed(vlm.model):
            rows.append(_uses(vlm, sample, mean))
    return pd.concat([answers(vlm, samples), pd.DataFrame(rows)], axis=1)


def answers(vlm: VLM, samples: list[Sample]) -> pd.DataFrame:
    """Whether the model's greedy answers are right."""
    return _answers(samples, _written(vlm, samples))


def _written(vlm: VLM, samples: list[Sample]) -> list[Completion]:
    return [
        text
        for k in range(0, len(samples), BATCH)
        for text in vlm.answers(samples[k : k + BATCH], max_new_tokens=MAX_NEW_TOKENS)
    ]


def _answers(samples: list[Sample], texts: list[Completion]) -> pd.DataFrame:
    rows = [
        {
            "sample": one.id,
            "family": one.family,
            "right": float(is_right(text.answer, one.answer)),
            "tokens": len(text.token_ids),
        }
        for one, text in zip(samples, texts, strict=True)
    ]
    return pd.DataFrame(rows)


def _uses(vlm: VLM, sample: Sample, mean: Pool) -> dict[str, float]:
    """Effects of visual sets on the first token in which the data's two answers differ.

    The text before it is the data's own, the same for every model. Node effects put the mean
    embedding in a set's place (3.2), with the direct write's Shapley value (3.3); edge effects cut
    what the row reads of it (3.1).
    """
    asked = _asked(vlm, sample)
    nodes = shapley(
        vlm,
        sample,
        references=references(vlm, sample, pool=mean, kinds=["mean"]),
        sources=SETS,
        gauge=("contrast", "centered"),
        **asked,
    ).squeeze(["target", "reference"])
    live = nodes.sel(norm="live")
    found = {}
    for gauge in ("contrast", "centered"):
        for name in SETS:
            at = {"gauge": gauge, "source_set": name}
            found[f"node {name} {gauge}"] = float(live["total"].sel(at))
            found[f"direct {name} {gauge}"] = float(
                live["shapley"].sel(at | {"path_class": PATH_CLASSES[0]})
            )
    edges = effects(vlm, sample, sources=SETS, gauge="contrast", **asked)
    for name in SETS:
        found[f"edge {name} contrast"] = float(edges["total"].sel(source_set=name).squeeze())
    return found


def _asked(vlm: VLM, sample: Sample) -> dict:
    """Row, target and foil, as the extractions take them: where the data's answers part."""
    tokenizer = vlm.processor.tokenizer
    words = words_of(tokenizer, completion(tokenizer, text_ids(vlm.processor, sample)))
    part = outcome(tokenizer, words, sample.answer, sample.twin.answer)
    query = ask(vlm, sample)
    wanted = ("answer", len(part.shared))
    at = next(k for k, place in enumerate(query.places) if tuple(place) == wanted)
    row = int(query.rows[at])
    return {"positions": [row], "targets": [part.target], "foils": [part.foil]}


def _aligned(vlm: VLM, sample: Sample) -> dict[str, float]:
    """How much of each map of the same text's answer lies on the boxes, and what chance gives."""
    maps = interp.extract.maps(vlm, sample, kinds=KINDS, only="answer", n_nodes=2)
    found = {}
    for kind in KINDS:
        scored = alignment_scores(holistic(maps, kind, "answer").values, sample.boxes)
        found[f"alignment {kind}"] = scored["alignment"]
        found[f"elsewhere {kind}"] = scored["alignment_shuffled"]
    return found | {"area": scored["chance"]}


def _painted(vlm: VLM, sample: Sample) -> dict[str, float]:
    """The evidence painted over before the tower, and its vectors swapped behind it (3.8)."""
    asked = _asked(vlm, sample)
    visual = np.flatnonzero(ask(vlm, sample).tokens.is_visual)[:1].tolist()
    options = {"sources": ["evidence"], "patches": visual, "gauge": "contrast"}
    found = pixel_effects(vlm, sample, **options, **asked)["set_total"].squeeze()
    return {f"{name} evidence contrast": float(found.sel(intervention=name)) for name in PAINTED}


def _changed(vlm: VLM, sample: Sample, text: Completion) -> dict[str, float]:
    """Deletion and insertion of the paper's map on the model's own answer, as share of 0 to 100."""
    maps = interp.extract.maps(vlm, sample, kinds=("bottleneck",), only="answer", completion=text)
    scores = faithfulness(vlm, sample, {"map": holistic(maps, "bottleneck")}, completion=text)
    part, whole = normalised(scores.sel(text=["answer"]))
    found = {}
    for change in scores["change"].values.tolist():
        found[change] = float(part.sel(change=change).mean())
        found[f"{change} whole"] = float(whole.mean())
    return found


def _tried(measure: Callable[..., dict], *given) -> dict:
    """Its numbers, or none, where a text or scene has none of them, and the log says why."""
    try:
        return measure(*given)
    except ValueError as error:
        log.warning("no %s: %s", measure.__name__.strip("_"), error)
        return {}


def _games(vlm: VLM, samples: list[Sample], texts: list[Completion]) -> list[dict]:
    """Owen values of the four paths on the model's own words (3.7), against the twin's image."""
    twins = [alike(one, one.twin) for one in samples]
    pairs = zip(samples, twins, texts, _written(vlm, twins), strict=True)
    ready: list[Game | dict] = [_tried(prepare, vlm, *pair) for pair in pairs]
    played = played_numbers([one for one in ready if isinstance(one, Game)])
    return [_paths(next(played)[1]) if isinstance(one, Game) else {} for one in ready]


def _paths(numbers: dict) -> dict[str, float]:
    owen = np.asarray(numbers["words_owen"][1])[0, GAUGES.index("contrast"), :, NORMS.index("live")]
    return {f"words {name}": float(value) for name, value in zip(PLAYERS, owen, strict=True)}


def as_columns(table: pd.DataFrame) -> dict[str, list]:
    """A table for JSON: rounded, with None where there is no number."""
    rounded = table.round(PRECISION)
    return {name: [None if pd.isna(v) else v for v in rounded[name]] for name in rounded}
