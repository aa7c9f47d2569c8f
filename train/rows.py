"""Samples as the rows that TRL's trainers read, made when they are asked for.

A row is a function of its index, so a resumed run sees exactly the rows it would have seen.
"""

from collections.abc import Callable
from dataclasses import dataclass

from datasets import Dataset

from interp.data.images import open_image
from interp.data.sample import Sample


def texts(
    n_samples: int,
    sample: Callable[[int], Sample],
    system: str | None = None,
    *,
    with_sample: bool = False,
) -> Dataset:
    """Samples by index as the rows of SFTTrainer: prompt, the sample's own text, image.

    Args:
        n_samples: how many.
        sample: makes each.
        system: the system prompt.
        with_sample: the sample itself too, for a loss that reads its boxes.
    """
    return _rows(n_samples, Texts(sample, system, with_sample))


def questions(samples: list[Sample], system: str | None) -> Dataset:
    """Samples as the rows of GRPOTrainer: prompt, image, and the sample itself for the reward."""
    return _rows(len(samples), Questions(samples, system))


def _rows(n_rows: int, columns: Callable[[dict], dict]) -> Dataset:
    return Dataset.from_dict({"index": list(range(n_rows))}).with_transform(columns)


# Objects of a module rather than closures: datasets hashes a closure with all that it can reach.
@dataclass(frozen=True)
class Texts:
    """From indices to the columns of SFTTrainer."""

    sample: Callable[[int], Sample]
    system: str | None
    with_sample: bool = False

    def __call__(self, batch: dict) -> dict:
        """Columns of the rows at `batch["index"]`."""
        rows = []
        for index in batch["index"]:
            sample = self.sample(index)
            completion = [{"role": "assistant", "content": sample.text}]
            own = {"sample": sample} if self.with_sample else {}
            rows.append(_question(sample, self.system) | {"completion": completion} | own)
        return _columns(rows)


@dataclass(frozen=True)
class Questions:
    """From indices to the columns of GRPOTrainer."""

    samples: list[Sample]
    system: str | None

    def __call__(self, batch: dict) -> dict:
        """Columns of the rows at `batch["index"]`."""
        samples = [self.samples[index] for index in batch["index"]]
        return _columns([_question(s, self.system) | {"sample": s} for s in samples])


def _columns(rows: list[dict]) -> dict[str, list]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def _question(sample: Sample, system: str | None) -> dict:
    prompt = [] if system is None else [{"role": "system", "content": system}]
    for question, reply in sample.earlier:
        prompt += [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    prompt.append({"role": "user", "content": sample.question})
    return {"prompt": prompt, "images": [open_image(sample.image)]}
