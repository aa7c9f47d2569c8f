"""Controls of the verdict (METHODS.md 3.6): where there is nothing to find, nothing is found.

    random weights     the same architecture, weights drawn anew: no reference passes the gate
    shuffled targets   another sample's answer in place of the model's own
    wrong image        the sample's text behind another sample's image

For the last two the mean total effect in the contrast gauge, against the likeliest other token, has
to be not above 0.
"""

import logging
from dataclasses import replace

import numpy as np
import torch
from tqdm import tqdm

import interp
from analyses.reports.direct_vs_indirect.rule import GAUGES
from analyses.reports.direct_vs_indirect.sample import REFERENCES, Measurer
from analyses.run.models import random_weights
from interp.data.images import open_image
from interp.data.sample import Sample
from interp.extract.question import ask
from interp.extract.references import Pool
from interp.extract.sharing import sharing
from interp.inputs.completions import Completion
from interp.model.vlm import embed

log = logging.getLogger("controls")
N_CONTROL = 100  # samples of each control


def measure_controls(
    measurer: Measurer, samples: list[Sample], texts: list[Completion | None]
) -> list[dict]:
    """One record per control, sample, reference and gauge: the answer's mean total effect.

    Samples without another to swap with are left out, with a warning.
    """
    vlm, records = measurer.vlm, []
    random = random_weights(vlm, measurer.seed)
    untrained = replace(measurer, vlm=random, pool=Pool(random, samples[:N_CONTROL]))
    pairs = list(zip(samples, texts, strict=True))[:N_CONTROL]
    for sample, text in tqdm(pairs, desc="controls", disable=None):
        try:
            with sharing():
                records += _of_sample(measurer, untrained, sample, text)
        except (ValueError, torch.OutOfMemoryError) as error:
            log.warning("no controls of %s: %s", sample.id, error)
    return records


def _of_sample(measurer: Measurer, untrained: Measurer, sample: Sample, text) -> list[dict]:
    """The records of one sample.

    Raises:
        ValueError: no other sample to swap with.
    """
    answer = sample.answer if text is None else text.answer
    grid = embed(measurer.vlm, open_image(sample.image))[1]
    donor = measurer.pool.other(sample, answer, grid, measurer.seed)
    wrong = replace(sample, image=_image_like(donor, sample), twin=None)
    # The random model explains the reference text, where there is one; it has none of its own.
    reference = text if sample.answer is None else None
    records = _record("random weights", untrained, sample, reference)
    if donor.answer is not None:
        records += _record("shuffled targets", measurer, sample, text, targets_of=donor)
    return records + _record("wrong image", measurer, wrong, text)


def _image_like(donor: Sample, sample: Sample):
    """The donor's image at the sample's size, so that boxes and grid stay."""
    size = open_image(sample.image).size
    return open_image(donor.image).resize(size)


def _record(control, measurer: Measurer, sample, text, targets_of=None) -> list[dict]:
    """Mean total effect of the image on the answer's tokens, by reference and gauge."""
    vlm, pool, seed = measurer.vlm, measurer.pool, measurer.seed
    kinds = REFERENCES if control == "random weights" else ("mean",)
    options = {"completion": text}
    references = interp.extract.references(
        vlm, sample, pool=pool, kinds=kinds, seed=seed, **options
    )
    query = ask(vlm, sample, **options)
    is_answer = [role == "answer" for role, _ in query.places]
    options["positions"] = query.rows[is_answer].tolist()
    if targets_of is not None:
        ids = vlm.processor.tokenizer(targets_of.answer, add_special_tokens=False).input_ids
        own = query.targets[is_answer].tolist()
        # Where both answers share a token, that target would not be shuffled.
        indices = [k for k, (a, b) in enumerate(zip(ids, own, strict=False)) if a != b]
        options["positions"] = [options["positions"][k] for k in indices]
        options["targets"] = [ids[k] for k in indices]
        if not indices:
            return []
    ds = interp.extract.shapley(
        vlm,
        sample,
        references=references,
        sources=["image"],
        gauge=GAUGES,
        foils="runner-up",
        **options,
    )
    total = (
        ds["total"]
        .sel(norm="live", source_set="image")
        .where(ds["is_defined"].sel(source_set="image"))
    )
    mean = total.mean("target", skipna=True)
    return [
        {
            "control": control,
            "sample": sample.id,
            "reference": str(reference),
            "gauge": str(gauge),
            "total": float(mean.sel(reference=reference, gauge=gauge)),
        }
        for reference in ds["reference"].values
        for gauge in GAUGES
        if np.isfinite(mean.sel(reference=reference, gauge=gauge))
    ]
