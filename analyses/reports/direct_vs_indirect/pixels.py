"""Pixels against vectors (METHODS.md 3.8) of a run's first samples: one record per intervention."""

import logging

import numpy as np
import torch
from tqdm import tqdm

import interp
from analyses.reports.direct_vs_indirect.sample import Measurer, contrast_foils
from interp.data.sample import Sample
from interp.extract.question import ask
from interp.inputs.completions import Completion

log = logging.getLogger("extraction")
N_PIXELS = 40  # samples
N_PATCHES = 32  # of a sample, at random where it has more: two forwards each


def measure_pixels(
    measurer: Measurer, samples: list[Sample], texts: list[Completion | None]
) -> list[dict]:
    """Agreement with painted pixels, border share and effects of the answer's first token.

    Samples that cannot be painted are left out, with a warning.
    """
    records: list[dict] = []
    pairs = list(zip(samples, texts, strict=True))[:N_PIXELS]
    for sample, text in tqdm(pairs, desc="pixels", disable=None):
        try:
            records += _of_sample(measurer, sample, text)
        except (ValueError, torch.OutOfMemoryError) as error:
            log.warning("no pixels of %s: %s", sample.id, error)
    return records


def _of_sample(measurer: Measurer, sample: Sample, text: Completion | None) -> list[dict]:
    """The records of one sample.

    Raises:
        ValueError: as `interp.extract.pixel_effects`, or a text without an answer.
    """
    query = ask(measurer.vlm, sample, completion=text)
    roles = [role for role, _ in query.places]
    if "answer" not in roles:
        raise ValueError(f"{sample.id}: expected an answer to explain, got none")
    first = roles.index("answer")
    ds = interp.extract.pixel_effects(
        measurer.vlm,
        sample,
        completion=text,
        positions=[int(query.rows[first])],
        targets=[int(query.targets[first])],
        patches=_some(np.flatnonzero(query.is_visual.cpu().numpy()), sample, measurer.seed),
        gauge="contrast",
        foils=[contrast_foils(measurer.vlm, sample, query)[first]],
    )
    records = []
    for name in ds["intervention"].values:
        one = ds.isel(target=0).sel(intervention=name)
        sets = {f"{key} [logit]": float(one["set_total"].sel(visual_set=key)) for key in _sets(one)}
        measures = {
            "rank agreement with pixels": float(one["rank_with_pixels"]),
            "share of Σ|effect| on border patches": float(one["border_share"]),
        }
        records.append({"sample": sample.id, "intervention": str(name), **sets, **measures})
    return records


def _some(rows: np.ndarray, sample: Sample, seed: int) -> list[int]:
    """All of a small image's patches; of a larger one as many as a report has time for."""
    rng = np.random.default_rng([seed, int(sample.fingerprint, 16)])
    return np.sort(rng.permutation(rows)[:N_PATCHES]).tolist()


def _sets(one) -> list[str]:
    return [name for name in ("image", "evidence") if name in one["visual_set"].values]
