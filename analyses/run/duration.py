"""How long a sample will take on this machine, measured before any weights are loaded.

A sample goes through the same recipe on models of the true width and dtype, with random weights and
one or two layers of text and of the vision tower. Each layer more takes what the second one took.
"""

import time
from collections.abc import Callable

import torch

from analyses.options import Extraction
from analyses.run.recipe import Budget, Recipe
from interp.data.sample import Sample
from interp.inputs import completions
from interp.loading import outline
from interp.model.vlm import VLM


class Writer(VLM):
    """Writes the samples' reference texts."""

    texts: dict
    generates: bool

    def answers(self, asked: list[Sample], *, max_new_tokens: int = 256) -> list:
        """As a model that knows them by heart; one that `generates` takes its time for them."""
        tokenizer = self.processor.tokenizer
        texts = (self.texts[one.question] if one.answer is None else one.text for one in asked)
        ids = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        if self.generates:
            super().answers(asked, max_new_tokens=1 + max(len(one) for one in ids))
        return [completions.completion(tokenizer, [*one, tokenizer.eos_token_id]) for one in ids]


def writer(vlm: VLM, samples: list[Sample], *, generates: bool) -> Writer:
    """A model that knows the samples' texts by heart."""
    known = Writer(**vars(vlm))
    known.__dict__["texts"] = {sample.question: sample.text for sample in samples}
    known.__dict__["generates"] = generates
    return known


def seconds_per_sample(
    name: str, recipe_of: Callable[[VLM], Recipe], options: Extraction, sample: Sample
) -> float:
    """Seconds that one sample takes, one at a time.

    Args:
        name: of the model.
        recipe_of: the recipe with a model.
        options: of the command.
        sample: to measure.

    Raises:
        ValueError: a sample that cannot be measured.
    """
    whole = outline(name).model.config
    n_layers, n_vision_layers = whole.text_config.num_hidden_layers, whole.vision_config.depth
    one = _seconds(name, recipe_of, options, sample, (1, 1))
    layer = max(0.0, _seconds(name, recipe_of, options, sample, (2, 1)) - one)
    vision_layer = max(0.0, _seconds(name, recipe_of, options, sample, (1, 2)) - one)
    return one + (n_layers - 1) * layer + (n_vision_layers - 1) * vision_layer


def _seconds(
    name: str,
    recipe_of: Callable[[VLM], Recipe],
    options: Extraction,
    sample: Sample,
    depth: tuple[int, int],
) -> float:
    """Seconds on a model of this depth; the better of two, because the first one warms up."""
    pixels = (options.min_pixels, options.max_pixels)
    vlm = outline(name, depth=depth, dtype=options.dtype, pixels=pixels)
    vlm.model.to("cuda" if torch.cuda.is_available() else "cpu")
    recipe = recipe_of(writer(vlm, [sample], generates=True))
    taken = []
    for _ in range(2):
        start = time.monotonic()
        shard = recipe.measure([sample], Budget(1, options.max_memory))
        taken.append(time.monotonic() - start)
    if shard.dataset is None:
        reasons = {one["reason"] for one in shard.statuses.values()}
        raise ValueError(f"expected samples that can be measured, got none: {sorted(reasons)}")
    return min(taken)
