"""How good is a model on held-out scenes, and does its answer listen to its thinking?

    python -m train.evaluate tiny --limit 400 --out reports/benchmarks/tiny.json

By greedy generation: answers right over all and by family, with Wilson intervals. Then the thinking
text of each scene is corrupted in its intermediate result, the rest teacher-forced, and the answer
generated again: how often does it change?
"""

import argparse
import json
from collections import defaultdict
from itertools import chain
from pathlib import Path

import numpy as np
import torch

import interp
from interp.data.sample import THINK_CLOSE, THINK_OPEN, Sample
from interp.inputs import completions
from interp.inputs import prompts as inputs
from interp.loading import DTYPES
from interp.model.state import undisturbed
from interp.model.vlm import PROMPTS, VLM
from interp.stats import proportion_interval
from train.refusals import in_one_line

PLACES = [f"{row} {column}" for row in ("top", "bottom") for column in ("left", "right")]


def corrupt(sample: Sample) -> str:
    """The sample's thinking with one intermediate result replaced: a place, or a digit of a sum."""
    rng = np.random.default_rng(int(sample.id[-6:]))
    text = sample.thinking.rstrip(".")
    if sample.family == "sum":
        head, last = text.rsplit(" ", 1)
        return f"{head} {(int(last) + int(rng.integers(1, 10))) % 10}."
    if sample.family == "count":
        head, listed = text.split(": ")
        places = listed.split(", ")
        free = [place for place in PLACES if place not in places]
        if not free or (len(places) > 1 and rng.random() < 0.5):
            return f"{head}: {', '.join(places[:-1])}."
        return f"{head}: {', '.join([*places, free[int(rng.integers(len(free)))]])}."
    *head, row, column = text.split(" ")
    others = [place for place in PLACES if place != f"{row} {column}"]
    return f"{' '.join(head)} {others[int(rng.integers(len(others)))]}."


def answers_after(vlm: VLM, samples: list[Sample], thinking: list[str]) -> list[str]:
    """The model's greedy answers when its thinking is given."""
    texts = [inputs.prompt_text(vlm.processor, one, PROMPTS[vlm.prompt]) for one in samples]
    prefixes = [f"{THINK_OPEN}\n{text}\n{THINK_CLOSE}\n" for text in thinking]
    batch = vlm.processor(
        images=[sample.image for sample in samples],
        text=[prompt + text for prompt, text in zip(texts, prefixes, strict=True)],
        padding=True,
        padding_side="left",
        add_special_tokens=False,
        return_tensors="pt",
    ).to(vlm.device)
    with undisturbed(vlm.model), torch.no_grad():
        out = vlm.model.generate(**batch, max_new_tokens=8, do_sample=False, repetition_penalty=1.0)
    new = out[:, batch["input_ids"].shape[1] :].tolist()
    return [completions.completion(vlm.processor.tokenizer, row).answer for row in new]


def evaluate(vlm: VLM, samples: list[Sample], batch_size: int = 32) -> dict:
    """Accuracy and corruption rates, over all and by family."""
    right, same_thinking, changed = defaultdict(list), defaultdict(list), defaultdict(list)
    for first in range(0, len(samples), batch_size):
        part = samples[first : first + batch_size]
        replies = vlm.answers(part, max_new_tokens=64)
        answers = answers_after(vlm, part, [s.thinking for s in part])
        misled_answers = answers_after(vlm, part, [corrupt(s) for s in part])
        for s, completion, before, after in zip(
            part, replies, answers, misled_answers, strict=True
        ):
            right[s.family].append(completions.is_right(completion.answer, s.answer))
            same_thinking[s.family].append(completion.thinking == s.thinking)
            changed[s.family].append(before != after)
    by_family = {name: _rates(right[name], same_thinking[name], changed[name]) for name in right}
    tables = (right, same_thinking, changed)
    everything = (list(chain(*table.values())) for table in tables)
    return {"all": _rates(*everything), **by_family}


def _rates(right: list[bool], same_thinking: list[bool], changed: list[bool]) -> dict:
    low, high = proportion_interval(sum(right), len(right))
    return {
        "n": len(right),
        "accuracy": float(np.mean(right)),
        "accuracy_interval": [low, high],
        "thinking_as_reference": float(np.mean(same_thinking)),
        "answer_changed_by_corrupted_thinking": float(np.mean(changed)),
    }


@in_one_line()
def main() -> None:
    """Evaluates and prints; writes JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="embedded name, hub id or folder")
    parser.add_argument("--adapter", help="peft adapter")
    parser.add_argument("--prompt", choices=list(PROMPTS), help="default: as it was trained")
    parser.add_argument("--revision", help="of the model's hub id")
    parser.add_argument("--device", help="default: a GPU where there is one")
    parser.add_argument("--dtype", default="auto", choices=DTYPES, help="default: %(default)s")
    parser.add_argument("--attn-implementation", default="sdpa", help="default: %(default)s")
    parser.add_argument("--min-pixels", type=int, help="images with fewer are enlarged")
    parser.add_argument("--max-pixels", type=int, help="images with more are made smaller")
    parser.add_argument("--limit", type=int, default=400, help="scenes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=100, help="of the scenes (default: 100)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    if options.limit < 1:
        parser.error(f"expected --limit of 1 or more, got {options.limit}")
    names = ("adapter", "prompt", "revision", "device", "dtype", "attn_implementation")
    names += ("min_pixels", "max_pixels")
    vlm = interp.load_model(options.model, **{name: getattr(options, name) for name in names})
    samples = interp.load_samples("digits", split="test", limit=options.limit, seed=options.seed)
    by_family = evaluate(vlm, samples)
    for name, rates in by_family.items():
        print(
            f"{name:16s} n {rates['n']:4d}  right {rates['accuracy']:.3f}  thinking as reference "
            f"{rates['thinking_as_reference']:.3f}  answer changed by corrupted thinking "
            f"{rates['answer_changed_by_corrupted_thinking']:.3f}"
        )
    if options.out:
        content = {
            "model": options.model,
            "model_hash": vlm.fingerprint,
            "seed": options.seed,
            "families": by_family,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
