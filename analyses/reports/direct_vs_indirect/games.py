"""The run that the verdict rests on: two games of every scene that it judges (RULE.md).

First game: the image's order-free shares with the text held fixed (METHODS.md 3.3), averaged over
the targets of a token class. Second game: the words are a player (3.7), with every partner.
"""

import logging
from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np
import xarray as xr

import interp
from analyses.options import DirectVsIndirect
from analyses.reports.direct_vs_indirect.partners import KINDS, Partners
from analyses.reports.direct_vs_indirect.rule import (
    GAUGES,
    LEAST_IMAGES,
    PER_FAMILY,
    SCENE_SEED,
    rule_hash,
)
from analyses.reports.direct_vs_indirect.sample import REFERENCES, contrast_foils
from analyses.run import samples as samples_of
from analyses.run.recipe import Budget, Shard, Tick, attempt, nothing, status
from analyses.run.texts import written
from interp.capture.memory import is_out_of_memory
from interp.data.sample import Sample
from interp.extract.prefilled import asked
from interp.extract.question import ask
from interp.extract.references import Pool
from interp.extract.sharing import sharing
from interp.extract.source_sets import named_sets
from interp.extract.word_games import Game, alike, prepare
from interp.extract.words import GAUGES as GAMES_GAUGES
from interp.extract.words import played_numbers
from interp.inputs.completions import Completion
from interp.inputs.outcomes import first_token, words_of
from interp.measures import TOKEN_CLASSES
from interp.model.identity import fingerprint
from interp.model.state import undisturbed
from interp.model.vlm import VLM
from interp.vocabulary import NORMS, PATH_CLASSES, PLAYERS, SINKLESS

log = logging.getLogger("extraction")
POOL_SCENES, POOL = 2000, 200  # scenes that partners, and references, are drawn from
SINKS = ("with", "without")
CONTROL = ("control_right", "control_wrong")
BRIEF = {
    "words_total": ("gauge", "norm"),
    "words_owen": ("gauge", "player", "norm"),
    "words_owen_strict": ("gauge", "player", "norm"),
}


def scenes(options: DirectVsIndirect) -> tuple[list[Sample], list[Sample]]:
    """The samples that are judged, in order, and the pool from which partners are drawn.

    Embedded scenes are drawn by the rule's own seed, as many of each family; fewer where --limit
    asks for a small report. Other data are judged as they come.
    """
    if options.data != "digits":
        samples = samples_of.load(options)
        return samples, samples
    per_family = PER_FAMILY if options.limit >= LEAST_IMAGES else max(1, options.limit // 5)
    limit = POOL_SCENES if options.limit >= LEAST_IMAGES else 200
    pool = interp.load_samples("digits", split=options.split, limit=limit, seed=SCENE_SEED)
    drawn: Counter = Counter()
    chosen = []
    for sample in pool:
        drawn[sample.family] += 1
        if drawn[sample.family] <= per_family:
            chosen.append(sample)
    return chosen, pool


class Games:
    """The recipe of the run."""

    def __init__(
        self, vlm: VLM, pool: list[Sample], options: DirectVsIndirect, *, certificate: dict
    ):
        """`pool`: where partners come from; references come from its first samples."""
        has_twins = any(one.twin is not None for one in pool)
        self.vlm, self.options = vlm, options
        self.partners = Partners(pool, options.seed)
        self.pool = Pool(vlm, list(islice(samples_of.readable(pool), POOL)))
        self.settings = {
            "report": "direct_vs_indirect",
            "part": "games",
            "rule": rule_hash(),
            "scene_seed": SCENE_SEED,
            "model": vlm.name,
            "model_hash": vlm.fingerprint,
            "adapter": vlm.adapter,
            "adapter_hash": fingerprint(vlm.model, adapter=True),
            "prompt": vlm.prompt,
            "revision": vlm.revision,
            "limit": options.limit,
            "max_new_tokens": options.max_new_tokens,
        }
        self.facts = {"certificate": certificate, "has_twins": has_twins}

    def measure(self, samples: list[Sample], budget: Budget, tick: Tick = nothing) -> Shard:
        """One shard: those of the samples that work, the others with their reason.

        It is made of batches over all samples, so none is done before the others.
        """
        texts = written(self.vlm, samples, budget, self.options.max_new_tokens)
        second = self._second(samples, texts, budget)
        statuses, datasets, ok = {}, [], []
        for sample, text, game in zip(samples, texts, second, strict=True):
            first = text if isinstance(text, Exception) else attempt(self._first, sample, text)
            error = first if isinstance(first, Exception) else None
            statuses[sample.id] = status(sample, error) | {"family": sample.family} | game[1]
            if isinstance(text, Completion):
                right = interp.inputs.completions.is_right(text.answer, sample.answer)
                statuses[sample.id]["is_correct"] = right
            if error is None:
                ok.append(sample)
                datasets.append(xr.merge([first, game[0]], join="exact", compat="override"))
        if not datasets:
            return Shard(None, statuses)
        names = xr.Variable("sample", [one.id for one in ok])
        shard = xr.concat(datasets, dim=names, data_vars="all", join="exact")
        shard["family"] = ("sample", [one.family for one in ok])
        shard.attrs = {}
        hashes = {one.id: one.fingerprint for one in ok}
        return Shard(shard, statuses, {"data_hashes": hashes, "attributes": self._attributes()})

    def finish(self, _run: xr.Dataset, _samples: list[Sample]) -> dict:
        """Nothing besides."""
        return {}

    def _attributes(self) -> dict:
        names = ("model", "model_hash", "adapter", "adapter_hash", "prompt", "revision", "rule")
        return {name: self.settings[name] for name in names} | {
            "dtype": str(self.vlm.model.dtype).removeprefix("torch.")
        }

    def _first(self, sample: Sample, text: Completion) -> xr.Dataset:
        """The game with the text held fixed: TE, P1 and its strict reading, by token class."""
        with sharing(), undisturbed(self.vlm.model):
            shares, control = self._shares(sample, text), attempt(self._control, sample, text)
        if isinstance(control, Exception):
            log.warning("no control of %s: %s", sample.id, control)
            control = xr.Dataset(dict.fromkeys(CONTROL, np.nan))
        return _by_class(shares).merge(control)

    def _shares(self, sample: Sample, text: Completion) -> xr.Dataset:
        """Shapley values of the image, with and without its sinks, for every reference."""
        has_other = bool(self.pool.candidates(sample, text.answer))
        references = interp.extract.references(
            self.vlm,
            sample,
            pool=self.pool,
            kinds=[kind for kind in REFERENCES if kind != "other" or has_other],
            completion=text,
            seed=self.options.seed,
        )
        prefilled = asked(self.vlm, sample, completion=text, gauge="raw", foils=None)
        sets = named_sets(prefilled.query, prefilled.context.is_sink)
        without = sets["image" + SINKLESS]
        has_sinks = (sets["image"] != without).any() and without.any()
        return interp.extract.shapley(
            self.vlm,
            sample,
            references=references,
            sources=["image", "image" + SINKLESS] if has_sinks else ["image"],
            completion=text,
            gauge=GAUGES,
            foils=contrast_foils(self.vlm, sample, prefilled.query),
        )

    def _control(self, sample: Sample, text: Completion) -> xr.Dataset:
        """Against a neutral foil: what the image, and a wrong one, does for the answer (3.6).

        The foil is the first token of an answer of this kind of question that neither image shows.
        """
        partner, tokenizer = self.partners.of(sample)[KINDS[1]], self.vlm.processor.tokenizer
        found = dict.fromkeys(CONTROL, np.nan)
        if partner is not None and text.thinking is not None and text.answer:
            words = words_of(tokenizer, text)
            mine = text.token_ids[len(words.ids)]
            shown = {first_token(tokenizer, words, one.answer) for one in (sample, partner)}
            if mine == first_token(tokenizer, words, partner.answer):
                return xr.Dataset(found)  # the wrong image shows what the text says
            taken = shown | {mine}
            answers = self.partners.answers(sample.family)
            free = sorted({first_token(tokenizer, words, one) for one in answers} - taken)
            if free:
                rng = np.random.default_rng([self.options.seed, int(sample.fingerprint, 16)])
                foil = free[int(rng.integers(len(free)))]
                wrong = replace(sample, image=alike(sample, partner).image, twin=None, boxes=None)
                for name, one in zip(CONTROL, (sample, wrong), strict=True):
                    found[name] = self._against(one, text, mine, foil)
        return xr.Dataset(found)

    def _against(self, sample: Sample, text: Completion, target: int, foil: int) -> float:
        """Total effect of the image, replaced by the mean, on the first token of the answer."""
        query = ask(self.vlm, sample, completion=text)
        row = next(
            row
            for row, (role, place) in zip(query.rows.tolist(), query.places, strict=True)
            if (role, place) == ("answer", 0)
        )
        mean = self.pool.mean.expand(int(query.is_visual.sum()), -1)
        ds = interp.extract.shapley(
            self.vlm,
            sample,
            references={"mean": mean},
            sources=["image"],
            completion=text,
            positions=[row],
            targets=[target],
            gauge="contrast",
            foils=[foil],
        )
        return float(ds["total"].sel(norm="live").squeeze())

    def _jobs(self, samples: list[Sample], texts: list, found: list[tuple]) -> list[tuple]:
        """Number of the sample, kind and partner of every game; in `found` why there is none."""
        jobs = []
        for number, (sample, text) in enumerate(zip(samples, texts, strict=True)):
            partners = attempt(self.partners.of, sample)
            if isinstance(partners, Exception):
                found[number][1].update(dict.fromkeys(KINDS, str(partners)))
                continue
            for kind, partner in partners.items():
                is_able = partner is not None and isinstance(text, Completion)
                like = attempt(alike, sample, partner) if is_able else "no such partner"
                if isinstance(like, Sample):
                    jobs.append((number, kind, like))
                else:
                    found[number][1][kind] = str(like)
        return jobs

    def _second(self, samples: list[Sample], texts: list, budget: Budget) -> list[tuple]:
        """The game in which the words are a player, of every sample with each of its partners."""
        found: list[tuple[dict, dict]] = [({}, {}) for _ in samples]
        jobs = self._jobs(samples, texts, found)
        answers = written(self.vlm, [job[2] for job in jobs], budget, self.options.max_new_tokens)
        games, places = [], []
        for (number, kind, partner), other in zip(jobs, answers, strict=True):
            game = other
            if not isinstance(other, Exception):
                game = attempt(prepare, self.vlm, samples[number], partner, texts[number], other)
            if isinstance(game, Exception):
                found[number][1][kind] = str(game).removeprefix(f"{samples[number].id}: ")
            else:
                games.append(game)
                places.append((number, kind))
        for (number, kind), one in zip(places, _played(games, budget), strict=True):
            if isinstance(one, Exception):
                found[number][1][kind] = str(one).splitlines()[0]
            else:
                found[number][0][kind] = one
        return [(_by_kind(by_kind), {"left_out": why}) for by_kind, why in found]


def _by_class(ds: xr.Dataset) -> xr.Dataset:
    """TE, P1 and strict P1, mean over the targets of each class; NaN where there are none."""
    values = xr.Dataset(
        {
            "first_total": ds["total"],
            "first_direct": ds["shapley"].sel(path_class=PATH_CLASSES[0], drop=True),
            "first_direct_strict": ds["shapley_strict"].sel(path_class=PATH_CLASSES[0], drop=True),
        }
    )
    roles = ds["target_role"].values
    by_class = [
        values.isel(target=np.flatnonzero(roles == name)).mean("target", skipna=True)
        for name in TOKEN_CLASSES
    ]
    joined = xr.concat(by_class, dim=xr.Variable("token_class", list(TOKEN_CLASSES)))
    joined = joined.reindex(reference=list(REFERENCES))
    with_sinks = joined.sel(source_set="image", drop=True)
    has_sinks = "image" + SINKLESS in ds["source_set"].values
    # Where nothing is a sink the image without its sinks is the image.
    without = joined.sel(source_set="image" + SINKLESS, drop=True) if has_sinks else with_sinks
    both = xr.concat([with_sinks, without], dim=xr.Variable("sinks", list(SINKS)))
    both["has_sinks"] = has_sinks
    return both.drop_vars([c for c in both.coords if c not in both.dims])


def _played(games: list[Game], budget: Budget) -> list[dict | Exception]:
    """The numbers of each game, or why there are none: one game's fault is that game's."""
    try:
        played = list(played_numbers(games, max_memory=budget.max_memory))
    except (ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        if len(games) == 1:
            return [error]
        return [one for game in games for one in _played([game], budget)]
    return [_brief(game, numbers) for game, numbers in played]


def _brief(game: Game, numbers: dict[str, tuple]) -> dict[str, np.ndarray]:
    """The numbers of a game's greedy texts that a verdict is made of."""
    brief = {name: numbers[name][1][0] for name in BRIEF}  # drawn greedily
    own, partner = game.sides["greedy"]
    return brief | {"parting": numbers["parting"][1], "has_same_words": np.array(own == partner)}


def _by_kind(by_kind: dict[str, dict]) -> xr.Dataset:
    """The games of a sample by kind of partner; NaN where there was none."""
    sizes = {"gauge": len(GAMES_GAUGES), "norm": len(NORMS)}
    sizes |= {"player": len(PLAYERS), "path_class": len(PATH_CLASSES)}
    variables = {}
    for name, dims in (BRIEF | {"parting": ("path_class", "norm"), "has_same_words": ()}).items():
        nothing = np.full([sizes[dim] for dim in dims], np.nan)
        values = np.stack([by_kind.get(kind, {}).get(name, nothing) for kind in KINDS])
        variables[name] = (("partner", *dims), values.astype(float))
    coords = {"partner": list(KINDS), "gauge": list(GAMES_GAUGES), "norm": list(NORMS)}
    coords |= {"player": list(PLAYERS), "path_class": list(PATH_CLASSES)}
    return xr.Dataset(variables, coords=coords).sel(gauge=list(GAUGES))
