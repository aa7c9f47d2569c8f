"""One model before or after training → everything that is measured on every sample.

On the text that the model writes itself (own), and on one text that is the same for all models.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

import interp
from analyses.options import BeforeAfter
from analyses.reports.before_after import models
from analyses.reports.before_after.findings import GAUGE
from analyses.reports.before_after.runs import runs_in
from analyses.reports.before_after.through_words import games, relation
from analyses.run import samples as samples_of
from analyses.run.models import certificate, code_version
from analyses.run.recipe import Budget, Shard, Tick, attempt, nothing, status
from analyses.run.shards import write_run
from analyses.run.texts import filled, stored_texts, written
from interp.data.images import open_image
from interp.data.sample import Sample
from interp.extract.question import ask
from interp.extract.references import Pool
from interp.extract.sharing import sharing
from interp.faithfulness import faithfulness
from interp.inputs.completions import Completion, is_right, is_well_formed
from interp.measures import TOKEN_CLASSES
from interp.model.identity import fingerprint
from interp.model.state import undisturbed
from interp.model.vlm import VLM
from interp.scoring import RULES, saliencies, score
from interp.store.joining import join
from interp.vocabulary import describe

SCORES = (
    "alignment",
    "chance",
    "alignment_shuffled",
    "alignment_center",
    "border_share",
    "border_area",
    "visual_attention",
)
SETS = ("image", "evidence", "background")
REFERENCES = ("mean", "twin")
FAITHFUL = ("direct", "effect")  # rules whose maps are tried on changed images
MOST_TARGETS = {"edge": 4}  # an exact map costs by target
MOST_MEMORY = 4 * 2**30  # besides the model, of a batch of maps
ALONE = "edge"  # no batch has it; it shares the forward of what else is measured of its text
TEXTS = ("own", "same")


def measure_run(options: BeforeAfter, path: Path) -> list[Path]:
    """Measures all models on all samples, a run each, numbered; what cannot be measured is NaN.

    Raises:
        ValueError: a model or data set that is not there, models with other tokens or prompts,
            no sample that can be read and has boxes, and as `shards.write_run`.
        NotCertified: the extractor fails an oracle on one of the models.
    """
    names = {models.label_of(name): name for name in (options.before, *options.after)}
    if len(names) < 1 + len(options.after):
        raise ValueError(
            f"expected models with different names, got {options.before} and {options.after}"
        )
    samples = samples_of.load(options)
    is_reference = options.text == "reference" or (
        options.text is None and all(one.thinking for one in samples)
    )
    before = None
    for number, (label, name, vlm) in enumerate(models.models(names, options)):
        text = "reference" if is_reference else "before"
        model_certificate = certificate(vlm, options)
        arm = Measurement(vlm, samples, options, text, certificate=model_certificate, before=before)
        before = before or Before(path / "0", arm.settings)
        arm.settings["arm"] = label
        arm.facts |= {"reward": models.reward_of(name), "curve": models.curve_of(name)}
        write_run(path / str(number), samples, arm, options)
    return runs_in(path)


def probe(vlm: VLM, samples: list[Sample], options: BeforeAfter) -> "Measurement":
    """The measurement of a few samples with a model that is not certified, for an estimate."""
    return Measurement(vlm, samples, options, "reference", certificate={})


@dataclass(frozen=True)
class Before:
    """The run of the model before training."""

    run: Path
    settings: dict


class Measurement:
    """The recipe: one model before or after training."""

    def __init__(
        self,
        vlm: VLM,
        samples: list[Sample],
        options: BeforeAfter,
        text: str,
        *,
        certificate: dict,
        before: Before | None = None,
    ):
        """A model's measurements.

        Args:
            vlm: the model.
            samples: all of them.
            options: of the command.
            text: "reference", or "before", what the first model wrote.
            certificate: of the model.
            before: the first model's run; None for that model itself.
        """
        self.vlm, self.options, self.before, self.text = vlm, options, before, text
        self.related = relation(vlm, before and before.settings)
        self.pool = Pool(
            vlm, [one for one in samples_of.readable(samples) if one.boxes is not None]
        )
        self.settings = {
            "report": "before_after",
            "text_of_all": text,
            "text": "completion",
            "base": vlm.name,
            "adapter": vlm.adapter,
            "model_hash": vlm.fingerprint,
            "adapter_hash": fingerprint(vlm.model, adapter=True),
            "prompt": vlm.prompt,
            "limit": options.limit,
            "max_new_tokens": options.max_new_tokens,
        }
        self.facts = {"certificate": certificate}

    def measure(self, samples: list[Sample], budget: Budget, tick: Tick = nothing) -> Shard:
        """One shard; samples without boxes or a readable image are skipped."""
        errors = {one.id: attempt(_checked, one) for one in samples}
        usable = [one for one in samples if errors[one.id] is None]
        own = written(self.vlm, usable, budget, self.options.max_new_tokens)
        errors |= {s.id: text for s, text in zip(usable, own, strict=True) if _is_error(text)}
        statuses = {one.id: status(one, errors[one.id]) for one in samples}
        pairs = [(s, text) for s, text in zip(usable, own, strict=True) if not _is_error(text)]
        reasons: list[str] = []
        datasets = []
        for k in range(0, len(pairs), budget.batch_size):
            batch, texts = (list(x) for x in zip(*pairs[k : k + budget.batch_size], strict=True))
            measured = _batch(self.vlm, self.pool, batch, texts, self._same(batch, texts), reasons)
            limit = self.options.max_new_tokens
            played = games(self.vlm, batch, texts, self.related, budget, limit)
            datasets += [
                _with_game(one, game, reasons) for one, game in zip(measured, played, strict=True)
            ]
            tick(len(batch))
        facts = {"codes": {code_version(): len(datasets)}}
        if not datasets:
            return Shard(None, statuses, facts)
        facts["reasons"] = {f"{samples[0].id} …": reasons}
        shard = join([one.expand_dims("sample") for one in datasets])
        batch, texts = (list(x) for x in zip(*pairs, strict=True))
        sizes = {one.id: open_image(one.image).size for one in batch}
        return Shard(describe(shard.merge(_facts(batch, texts))), statuses, facts, sizes)

    def finish(self, run: xr.Dataset, samples: list[Sample]) -> dict:
        """No attributes of the whole run."""
        return {}

    def _same(self, samples: list[Sample], own: list[Completion]) -> list:
        """The texts that are the same for all models."""
        if self.text == "reference":
            return [None] * len(samples)
        if self.before is None:
            return own
        run = interp.open_run(self.before.run, check="structure")
        return stored_texts(run, self.vlm, samples)


def _with_game(measured: xr.Dataset, game, reasons: list[str]) -> xr.Dataset:
    """The measurements of a sample with its game, where it has one."""
    if isinstance(game, Exception):
        reasons.append(str(game))
        return measured
    return measured.merge(game)


def _is_error(outcome) -> bool:
    return isinstance(outcome, Exception)


def _checked(sample: Sample) -> None:
    """Raises ValueError for a sample that has no boxes or an image that cannot be read."""
    samples_of.only_image(sample)
    if sample.boxes is None:
        raise ValueError(f"{sample.id}: expected evidence boxes, got none")


def _facts(samples: list[Sample], own: list[Completion]) -> xr.Dataset:
    """Facts about the samples that a page tells."""
    by_sample = {
        "question": [one.question for one in samples],
        "reference_answer": [one.answer or "" for one in samples],
        "family": [one.family for one in samples],
    }
    arrays = {
        "box": (("sample", "box_number", "edge"), filled([one.boxes for one in samples], np.nan)),
        "text_token_id": (("sample", "text_token"), filled([t.token_ids for t in own], -1)),
    }
    return xr.Dataset(
        {name: ("sample", values) for name, values in by_sample.items()} | arrays,
        coords={"sample": [one.id for one in samples]},
    )


def _batch(vlm: VLM, pool: Pool, samples, own, same, reasons: list[str]) -> list[xr.Dataset]:
    batched = [rule for rule in RULES if rule != ALONE]
    maps = {
        name: {rule: _maps(vlm, samples, texts, rule, reasons) for rule in batched}
        for name, texts in zip(TEXTS, (own, same), strict=True)
    }
    datasets = []
    for k, (sample, *texts) in enumerate(zip(samples, own, same, strict=True)):
        by_text = {name: {rule: maps[name][rule][k] for rule in batched} for name in TEXTS}
        measured = []
        for name, text, measure in zip(TEXTS, texts, (_faithful, _effects), strict=True):
            with sharing(), undisturbed(vlm.model):
                by_text[name][ALONE] = _maps(vlm, [sample], [text], ALONE, reasons)[0]
                outcome = attempt(measure, vlm, pool, sample, text, by_text["own"])
            if isinstance(outcome, Exception):
                reasons.append(f"{sample.id}: {outcome}")
            else:
                measured.append(outcome)
        parts = [_written(vlm, sample, texts[0]), _scores(sample, by_text)]
        parts += [_drawn(by_text["same"]), *measured]
        merged = xr.merge(parts, join="outer", compat="override")
        datasets.append(merged.assign_coords(sample=sample.id))
    return datasets


def _maps(vlm: VLM, samples, texts, rule: str, reasons: list[str]) -> list:
    """By sample a map, or None where there is none."""
    limit = MOST_TARGETS.get(rule, 64)
    pairs = list(zip(samples, texts, strict=True))
    outcomes = saliencies(vlm, pairs, rule=rule, max_targets=limit, max_memory=MOST_MEMORY)
    reasons += [one for one in outcomes if isinstance(one, str)]
    return [None if isinstance(one, str) else one for one in outcomes]


def _written(vlm: VLM, sample: Sample, text: Completion) -> xr.Dataset:
    """The model's text, and whether it is right."""
    facts = {
        "is_correct": math.nan
        if sample.answer is None
        else float(is_right(text.answer, sample.answer)),
        "is_well_formed": float(is_well_formed(vlm.processor.tokenizer, text)),
        "n_tokens": float(len(text.token_ids)),
        "written": text.text,
        "answer": text.answer,
    }
    return xr.Dataset({name: ((), value) for name, value in facts.items()})


def _scores(sample: Sample, maps: dict) -> xr.Dataset:
    """Alignment with its controls, by text and rule."""
    scores = np.full((len(SCORES), len(TEXTS), len(RULES)), np.nan)
    for i, by_rule in enumerate(maps.values()):
        for j, rule in enumerate(RULES):
            saliency = by_rule[rule]
            if saliency is not None:
                scored = score(saliency, sample)
                scores[:, i, j] = [float(scored[name]) for name in SCORES]
    dims = ("text_of", "rule")
    variables = {name: (dims, values) for name, values in zip(SCORES, scores, strict=True)}
    return xr.Dataset(variables, coords={"text_of": list(TEXTS), "rule": list(RULES)})


def _drawn(maps: dict) -> xr.Dataset:
    """The maps on the same text, to be drawn."""
    drawn = {rule: one.map for rule, one in maps.items() if one is not None}
    if not drawn:
        return xr.Dataset()
    joined = xr.concat(list(drawn.values()), pd.Index(list(drawn), name="rule"))
    return joined.reset_coords(drop=True).rename("answer_map").to_dataset()


def _faithful(vlm: VLM, _pool, sample: Sample, text: Completion, maps: dict) -> xr.Dataset:
    """Deletion and insertion on the model's own text."""
    chosen = {rule: maps[rule].map for rule in FAITHFUL if maps[rule] is not None}
    if len(chosen) < len(FAITHFUL):
        raise ValueError("expected maps of the own text for deletion and insertion, got none")
    return faithfulness(vlm, sample, chosen, completion=text)


def _effects(vlm: VLM, pool: Pool, sample: Sample, text: Completion | None, _maps) -> xr.Dataset:
    """Edge effects by path, and total effects with their path classes, of the same text."""
    tokens = ask(vlm, sample, completion=text).tokens
    has_background = (tokens.is_visual & ~tokens.is_evidence).any()
    sources = SETS if has_background else SETS[:-1]
    options = {"completion": text, "sources": sources, "gauge": GAUGE}
    edges = interp.extract.effects(vlm, sample, **options)
    references = interp.extract.references(
        vlm, sample, pool=pool, kinds=REFERENCES, completion=text
    )
    nodes = interp.extract.shapley(vlm, sample, references=references, **options)
    nodes = nodes.rename(is_defined="node_defined", total="shapley_total", source_set="visual_set")
    live = nodes.sel(norm="live", drop=True)
    effects = xr.Dataset(
        {
            "effect": _by_class(edges, edges["effect"].where(edges["is_defined"])),
            "total": _by_class(edges, edges["total"].where(edges["is_defined"])),
            "shapley": _by_class(live, live["shapley"].where(live["node_defined"])),
            "shapley_total": _by_class(live, live["shapley_total"].where(live["node_defined"])),
        }
    )
    # What a sample cannot have, a twin or a background, is NaN.
    coords = {"reference": list(REFERENCES), "visual_set": list(SETS), "source_set": list(SETS)}
    return effects.reindex(coords)


def _by_class(dataset: xr.Dataset, values: xr.DataArray) -> xr.DataArray:
    """Means over the targets of each token class that are defined; NaN without one."""
    role = dataset["target_role"].values
    means = [values.isel(target=role == c).mean("target", skipna=True) for c in TOKEN_CLASSES]
    joined = xr.concat(means, pd.Index(TOKEN_CLASSES, name="token_class"))
    return joined.reset_coords(drop=True)
