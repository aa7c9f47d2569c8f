"""Samples as the rows that TRL's trainers read, made when they are asked for.

A row is a function of its index, so a resumed run sees exactly the rows it would have seen.
"""

import logging
from collections import Counter
from collections.abc import Callable

from datasets import Dataset

from interp.data.images import open_image
from interp.data.sample import Sample

log = logging.getLogger("data")


def texts(n_samples: int, sample: Callable[[int], Sample], system: str | None = None) -> Dataset:
    """Samples by index as the rows of SFTTrainer: prompt, the sample's own text, image."""

    def row(index: int) -> dict:
        example = sample(index)
        return _question(example, system) | {
            "completion": [{"role": "assistant", "content": example.text}]
        }

    return _rows(n_samples, row)


def questions(samples: list[Sample], system: str | None) -> Dataset:
    """Samples as the rows of GRPOTrainer: prompt, image, and the sample itself for the reward."""
    return _rows(len(samples), lambda k: _question(samples[k], system) | {"sample": samples[k]})


def _rows(n_rows: int, row: Callable[[int], dict]) -> Dataset:
    def transform(batch: dict) -> dict:
        rows = [row(k) for k in batch["index"]]
        return {key: [one[key] for one in rows] for key in rows[0]}

    return Dataset.from_dict({"index": list(range(n_rows))}).with_transform(transform)


def _question(sample: Sample, system: str | None) -> dict:
    prompt = [{"role": "user", "content": sample.question}]
    if system is not None:
        prompt.insert(0, {"role": "system", "content": system})
    return {"prompt": prompt, "images": [open_image(sample.image)]}


def usable(samples: list[Sample], *, with_boxes: bool) -> list[Sample]:
    """Samples whose image opens and, where asked for, that have boxes; others are counted.

    Raises:
        ValueError: none is left.
    """
    usable_samples, left_out = [], Counter()
    for sample in samples:
        if with_boxes and sample.boxes is None:
            left_out["no boxes"] += 1
            continue
        try:
            open_image(sample.image)
        except ValueError as error:
            left_out["unreadable image"] += 1
            log.warning("%s: %s", sample.id, error)
            continue
        usable_samples.append(sample)
    for reason, count in left_out.items():
        log.warning("%d of %d samples left out: %s", count, len(samples), reason)
    if not usable_samples:
        raise ValueError(f"expected at least one usable sample, got {dict(left_out) or 'none'}")
    return usable_samples
