"""One model before or after training → everything that is measured on every sample.

On the text that the model writes itself (own), and on one text that is the same for all models.
"""

from argparse import Namespace

import numpy as np
import pandas as pd
import xarray as xr
from tqdm import tqdm

import interp
from analyses.extraction import is_right
from interp.faithfulness import faithfulness
from interp.inputs import Completion, is_well_formed
from interp.measures import TOKEN_CLASSES
from interp.model import VLM
from interp.query import ask
from interp.references import Pool
from interp.sample import Sample
from interp.scores import RULES, saliencies, score

SCORES = ("alignment", "chance", "alignment_shuffled", "alignment_center", "border_share",
          "border_area", "visual_attention")  # fmt: skip
SETS = ("image", "evidence", "background")
REFERENCES = ("mean", "twin")
FAITHFUL = ("direct", "effect")  # rules whose maps are tried on changed images
MOST_TARGETS = {"edge": 4}  # an exact map costs by target
MOST_MEMORY = 4 * 2**30  # besides the model, of a batch of maps
TEXTS = ("own", "same")


def measure_arm(
    vlm: VLM, samples: list[Sample], texts: list[Completion | None], options: Namespace
) -> tuple[xr.Dataset, list[str]]:
    """One model's measurements, and why some are missing; the first fills empty `texts`."""
    pool = Pool(vlm, samples)
    made, reasons = [], []
    is_first = not texts
    size = options.batch_size
    for start in tqdm(range(0, len(samples), size), desc=vlm.adapter or vlm.name, disable=None):
        batch = samples[start : start + size]
        pairs = [(one.image, one.question) for one in batch]
        own = vlm.answers(pairs, max_new_tokens=options.max_new_tokens)
        if is_first:
            texts += own
        same = texts[start : start + size]
        made += _batch(vlm, pool, batch, own, same, reasons)
    return xr.concat(_complete(made), "sample", join="outer"), reasons


def _complete(made: list[xr.Dataset]) -> list[xr.Dataset]:
    """Every sample with the variables of all; what was not measured is NaN."""
    every = {name: values for one in made for name, values in one.data_vars.items()}
    return [
        one.assign(
            {name: xr.full_like(x, np.nan, dtype=float) for name, x in every.items()
             if name not in one}
        )
        for one in made
    ]  # fmt: skip


def _batch(vlm: VLM, pool: Pool, samples, own, same, reasons: list[str]) -> list[xr.Dataset]:
    maps = {
        name: {rule: _maps(vlm, samples, texts, rule, reasons) for rule in RULES}
        for name, texts in (("own", own), ("same", same))
    }
    made = []
    for k, (sample, mine, first) in enumerate(zip(samples, own, same, strict=True)):
        by_text = {name: {rule: maps[name][rule][k] for rule in RULES} for name in TEXTS}
        parts = [_written(vlm, sample, mine), _scores(sample, by_text), _drawn(by_text["same"])]
        for measure, text in ((_faithful, mine), (_effects, first)):
            try:
                parts.append(measure(vlm, pool, sample, text, by_text["own"]))
            except ValueError as error:
                reasons.append(f"{sample.id}: {error}")
        made.append(xr.merge(parts, join="outer", compat="override"))
    return made


def _maps(vlm: VLM, samples, texts, rule: str, reasons: list[str]) -> list:
    """By sample a map, or None where there is none."""
    limit = MOST_TARGETS.get(rule, 64)
    pairs = list(zip(samples, texts, strict=True))
    found = saliencies(vlm, pairs, rule=rule, max_targets=limit, max_memory=MOST_MEMORY)
    reasons += [one for one in found if isinstance(one, str)]
    return [None if isinstance(one, str) else one for one in found]


def _written(vlm: VLM, sample: Sample, text: Completion) -> xr.Dataset:
    """What the model wrote, and whether it is right."""
    facts = {
        "is_correct": float(is_right(text.answer, sample.answer)),
        "is_well_formed": float(is_well_formed(vlm.processor.tokenizer, text)),
        "n_tokens": float(len(text.token_ids)),
        "written": text.text,
    }
    return xr.Dataset({name: ((), value) for name, value in facts.items()})


def _scores(sample: Sample, maps: dict) -> xr.Dataset:
    """Alignment with its controls, by text and rule."""
    found = np.full((len(SCORES), len(TEXTS), len(RULES)), np.nan)
    for i, by_rule in enumerate(maps.values()):
        for j, one in enumerate(by_rule.values()):
            if one is not None:
                scored = score(one, sample)
                found[:, i, j] = [float(scored[name]) for name in SCORES]
    dims = ("text_of", "rule")
    made = {name: (dims, values) for name, values in zip(SCORES, found, strict=True)}
    return xr.Dataset(made, coords={"text_of": list(TEXTS), "rule": list(RULES)})


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
    """Of the same text edge effects by path, and total effects with their path classes."""
    tokens = ask(vlm, sample, completion=text).tokens
    has_background = ((tokens.image >= 0) & ~tokens.is_evidence).any()
    asked = {"completion": text, "sources": SETS if has_background else SETS[:-1]}
    edges = interp.extract.effects(vlm, sample, **asked)
    references = interp.extract.references(
        vlm, sample, pool=pool, kinds=REFERENCES, completion=text
    )
    nodes = interp.extract.shapley(vlm, sample, references=references, **asked)
    nodes = nodes.rename(is_defined="node_defined", total="shapley_total", source_set="visual_set")
    live = nodes.sel(norm="live", drop=True)
    found = xr.Dataset(
        {
            "effect": _by_class(edges, edges["effect"].where(edges["is_defined"])),
            "total": _by_class(edges, edges["total"].where(edges["is_defined"])),
            "shapley": _by_class(live, live["shapley"].where(live["node_defined"])),
            "shapley_total": _by_class(live, live["shapley_total"].where(live["node_defined"])),
        }
    )
    # What a sample cannot have, a twin or a background, is NaN.
    every = {"reference": list(REFERENCES), "visual_set": list(SETS), "source_set": list(SETS)}
    return found.reindex(every)


def _by_class(dataset: xr.Dataset, values: xr.DataArray) -> xr.DataArray:
    """Means over the targets of each token class that are defined; NaN without one."""
    role = dataset["target_role"].values
    means = [values.isel(target=role == c).mean("target", skipna=True) for c in TOKEN_CLASSES]
    joined = xr.concat(means, pd.Index(TOKEN_CLASSES, name="token_class"))
    return joined.reset_coords(drop=True)
