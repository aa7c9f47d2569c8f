"""Samples → the run of `direct_vs_indirect.py`: the model's texts, and what is measured on them."""

from itertools import islice
from pathlib import Path

import numpy as np
import xarray as xr

import interp
from analyses.options import DirectVsIndirect
from analyses.reports.direct_vs_indirect.answers import write_answers
from analyses.reports.direct_vs_indirect.comparison import compared_path
from analyses.reports.direct_vs_indirect.controls import N_CONTROL, measure_controls
from analyses.reports.direct_vs_indirect.games import Games, scenes
from analyses.reports.direct_vs_indirect.pixels import N_PIXELS, measure_pixels
from analyses.reports.direct_vs_indirect.rule import games_path
from analyses.reports.direct_vs_indirect.sample import Measurer
from analyses.run import samples as samples_of
from analyses.run.models import certificate, code_version, compared, is_adapter, load
from analyses.run.recipe import Budget, Shard, Tick, attempt, nothing, status
from analyses.run.shards import write_run
from analyses.run.texts import Text, filled, stored_texts, written
from interp import measures
from interp.data.images import upright_size
from interp.data.sample import Sample
from interp.extract.references import Pool
from interp.inputs.completions import Completion, is_right
from interp.inputs.views import cell_size
from interp.model.identity import fingerprint
from interp.model.vlm import VLM
from interp.store.joining import stack

POOL = 200  # samples from which references are drawn
COMMON = (
    "model",
    "revision",
    "model_hash",
    "adapter",
    "adapter_hash",
    "prompt",
    "gauge",
    "mode",
    "norm",
    "dtype",
    "attn_implementation",
    "torch",
    "transformers",
    "nnsight",
    "xarray",
)


def measure_run(options: DirectVsIndirect, path: Path) -> list[Path]:
    """Measures all samples, and for `--compare` the same texts through a second model.

    Every sample gets a status. The second run lies beside the first, at `compared_path`.

    Raises:
        ValueError: a model or data set that cannot be loaded, not one sample that could be read,
            and as `shards.write_run`.
        NotCertified: the extractor fails an oracle on one of the models.
    """
    samples = samples_of.load(options)
    if options.compare is not None:
        is_adapter(options.compare)  # hours before it is loaded
    vlm = load(options, options.model, options.adapter)
    recipe = Measurement(vlm, samples, options, certificate=certificate(vlm, options))
    write_run(path, samples, recipe, options)
    write_answers(path, vlm, samples, options)
    if plays_games(options):
        judged, pool = scenes(options)
        games = Games(vlm, pool, options, certificate=recipe.facts["certificate"])
        write_run(games_path(path), judged, games, options)
    if options.compare is not None:
        second = compared(options, vlm)
        del vlm
        model_certificate = certificate(second, options)
        recipe = Measurement(second, samples, options, certificate=model_certificate, texts_of=path)
        write_run(compared_path(path), samples, recipe, options)
    return [path]


def plays_games(options: DirectVsIndirect) -> bool:
    """Whether the verdict's run is measured too: it is about the model's own texts, in full."""
    return options.effects != "edge" and options.text == "completion"


def probe(vlm: VLM, samples: list[Sample], options: DirectVsIndirect) -> "Measurement":
    """The measurement of a few samples with a model that is not certified, for an estimate."""
    return Measurement(vlm, samples, options, certificate={})


def probe_games(vlm: VLM, pool: list[Sample], options: DirectVsIndirect) -> Games:
    """The games of a few scenes with a model that is not certified, for an estimate."""
    return Games(vlm, pool, options, certificate={})


class Measurement:
    """The recipe: ledger, effects, order-free shares and patch maps of every token of a text."""

    def __init__(
        self,
        vlm: VLM,
        samples: list[Sample],
        options: DirectVsIndirect,
        *,
        certificate: dict,
        texts_of: Path | None = None,
    ):
        """`texts_of` is a run whose texts, and foils, to take instead of the model's own."""
        self.vlm, self.options, self.texts_of = vlm, options, texts_of
        pool = None
        if options.effects != "edge":
            pool = Pool(vlm, list(islice(samples_of.readable(samples), POOL)))
        foils = None if texts_of is None else stored_foils(texts_of)
        self.measurer = Measurer(
            vlm, pool, options.gauge, options.seed, options.detail, given_foils=foils
        )
        names = ("text", "limit", "effects", "detail", "max_new_tokens")
        self.settings = {"report": "direct_vs_indirect", "model_hash": vlm.fingerprint}
        self.settings |= {name: getattr(options, name) for name in names}
        self.settings |= {"model": vlm.name, "adapter": vlm.adapter, "gauge": options.gauge}
        self.settings["adapter_hash"] = fingerprint(vlm.model, adapter=True)
        self.settings |= {"prompt": vlm.prompt, "revision": vlm.revision}
        self.facts = {"certificate": certificate}

    def measure(self, samples: list[Sample], budget: Budget, tick: Tick = nothing) -> Shard:
        """One shard: those of the samples that work, the others with their reason."""
        texts = self._texts(samples, budget)
        images = [attempt(samples_of.only_image, sample) for sample in samples]
        unfit = [one if isinstance(one, Exception) else None for one in images]
        texts = [reason or text for reason, text in zip(unfit, texts, strict=True)]
        outcomes = self.measurer.measure(list(zip(samples, texts, strict=True)), budget, tick)
        statuses, triples = {}, []
        for sample, text, outcome in zip(samples, texts, outcomes, strict=True):
            error = outcome if isinstance(outcome, Exception) else None
            statuses[sample.id] = status(sample, error) | _written(sample, text)
            if error is None:
                triples.append((sample, text, outcome))
        facts = {"codes": {code_version(): len(triples)}}
        if not triples:
            return Shard(None, statuses, facts)
        facts["data_hashes"] = {sample.id: sample.fingerprint for sample, *_ in triples}
        facts["attributes"] = {k: v for k, v in triples[0][2].attrs.items() if k in COMMON}
        shard = _stacked(triples)
        sizes = {sample.id: _size(self.vlm, sample, one) for sample, _, one in triples}
        if self.options.detail == "summary":
            shard = measures.condensed(shard)
        return Shard(shard, statuses, facts, sizes)

    def finish(self, run: xr.Dataset, samples: list[Sample]) -> dict:
        """Controls, and pixels against vectors, of a run with all paths."""
        if self.measurer.pool is None or self.texts_of is not None:
            return {}
        well = [one for one in samples if run.attrs["statuses"][one.id]["status"] == "ok"]
        well = well[: max(N_CONTROL, N_PIXELS)]
        texts = stored_texts(run, self.vlm, well)
        return {
            "controls": measure_controls(self.measurer, well, texts),
            "pixels": measure_pixels(self.measurer, well, texts),
        }

    def _texts(self, samples: list[Sample], budget: Budget) -> list[Text]:
        if self.texts_of is not None:
            run = interp.open_run(self.texts_of, check="structure")
            return stored_texts(run, self.vlm, samples)
        if self.options.text == "reference":
            return [None] * len(samples)
        return written(self.vlm, samples, budget, self.options.max_new_tokens)


def stored_foils(path: Path) -> dict[str, list[int]] | None:
    """The foils of a run's targets by sample; None for a run in a gauge that has none."""
    run = interp.open_run(path, check="structure")
    if "foil_token_id" not in run:
        return None
    ids = run["foil_token_id"].load().groupby("target_sample")
    return {str(name): [int(i) for i in own.values] for name, own in ids}


def _written(sample: Sample, text: Text) -> dict:
    """Whether the model, if it was asked, was right; explained or not."""
    entry = {"family": sample.family}
    if isinstance(text, Completion):
        entry["is_complete"] = text.is_complete
    if isinstance(text, Completion) and sample.answer is not None:
        entry["is_correct"] = is_right(text.answer, sample.answer)
    return entry


def _size(vlm, sample: Sample, measured: xr.Dataset) -> tuple[int, int]:
    """Width and height at which the model saw the image, in pixels."""
    cell = cell_size(vlm.processor)
    if cell is None:
        return upright_size(sample.image)
    return (int(measured["column"].max()) + 1) * cell, (int(measured["row"].max()) + 1) * cell


def _stacked(triples: list[tuple]) -> xr.Dataset:
    """One dataset from the samples' own and what a report needs to know about them."""
    samples = [sample for sample, *_ in triples]
    texts = [text for _, text, _ in triples]
    boxes = filled([np.zeros((0, 4)) if s.boxes is None else s.boxes for s in samples], np.nan)
    answers = [s.answer if c is None else c.answer for s, c in zip(samples, texts, strict=True)]
    ids = filled([np.array([] if c is None else c.token_ids, dtype=int) for c in texts], -1)
    right = [is_right(a, s.answer) for a, s in zip(answers, samples, strict=True)]
    by_sample = {
        "question": [s.question for s in samples],
        "reference_answer": [s.answer or "" for s in samples],
        "text": [s.text if c is None else c.text for s, c in zip(samples, texts, strict=True)],
        "answer": answers,
        "is_correct": right,
        "family": [s.family for s in samples],
        "n_boxes": [0 if s.boxes is None else len(s.boxes) for s in samples],
    }
    facts = xr.Dataset(
        {name: ("sample", values) for name, values in by_sample.items()}
        | {"box": (("sample", "box_number", "edge"), boxes)}
        | {"text_token_id": (("sample", "text_token"), ids)},
        coords={"sample": [s.id for s in samples]},
    )
    return stack([one for *_, one in triples], facts)
