"""The texts that are explained: the model's own, stored ones, or the samples' reference."""

import numpy as np
import xarray as xr

from analyses.run.recipe import Budget
from interp.capture.memory import is_out_of_memory
from interp.data.sample import Sample
from interp.inputs.completions import Completion, completion
from interp.model.vlm import VLM

Text = Completion | Exception | None
"""What a model wrote, or why it wrote nothing; None for the samples' reference text."""


def written(vlm: VLM, samples: list[Sample], budget: Budget, max_new_tokens: int) -> list[Text]:
    """For each sample the model's greedy text, in batches, or why there is none."""
    texts: list[Text] = []
    for k in range(0, len(samples), budget.batch_size):
        texts += _written_at_once(vlm, samples[k : k + budget.batch_size], max_new_tokens)
    return texts


def _written_at_once(vlm: VLM, samples: list[Sample], max_new_tokens: int) -> list[Text]:
    try:
        return vlm.answers(samples, max_new_tokens=max_new_tokens)
    except (ValueError, RuntimeError, TypeError) as error:
        if len(samples) == 1:
            return [error]
        if is_out_of_memory(error):
            raise
    return [text for one in samples for text in _written_at_once(vlm, [one], max_new_tokens)]


def stored_texts(run: xr.Dataset, vlm: VLM, samples: list[Sample]) -> list[Text]:
    """The texts of a run: None for reference texts, an error for a sample that it has none of."""
    if run.attrs["text"] == "reference":
        return [None] * len(samples)
    has = set(run["sample"].values.tolist())
    texts: list[Text] = []
    for sample in samples:
        if sample.id in has:
            ids = run["text_token_id"].sel(sample=sample.id).values
            texts.append(completion(vlm.processor.tokenizer, ids[ids >= 0].tolist()))
        else:
            reason = run.attrs["statuses"].get(sample.id, {}).get("reason", "not in the run")
            texts.append(ValueError(f"{sample.id}: no text, {reason}"))
    return texts


def filled(arrays: list, value) -> np.ndarray:
    """Arrays of different lengths as one, the shorter ones filled up behind; at least one entry."""
    arrays = [np.asarray(array) for array in arrays]
    most = max(1, *(len(array) for array in arrays))
    full = np.full((len(arrays), most, *arrays[0].shape[1:]), value, dtype=arrays[0].dtype)
    for row, array in zip(full, arrays, strict=True):
        row[: len(array)] = array
    return full
