"""Time and memory of extractions, against a plain forward of the same model in the same run.

Machines are noisy: extraction and forward take turns, and the median of the pairwise ratios is
given with its range. Memory is the peak of a process of its own (of the allocator on a GPU).
"""

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import psutil

from analyses.benchmarks.models import (
    Setting,
    as_vlm,
    make_batch,
    make_model,
    make_sample,
    make_text,
)

PRELOADED = ["analyses.benchmarks.timing", "interp.validate"]
EXTRACTIONS = ("ledger", "effects", "shapley", "first_order", "patch_effects")
BATCHED = ("ledger of a batch", "effects of a batch", "first_order of a batch")
MAP_KINDS = ("direct", "bottleneck", "effect")
MAP_TEXT_TOKENS = 60  # about what stands around the picture


def tasks(model, setting: Setting) -> dict[str, Callable]:
    """Functions to time, by name."""
    import torch

    import interp
    from interp.model import families

    batch = make_batch(model, setting.tokens)
    rows = list(range(setting.tokens - setting.targets - 1, setting.tokens - 1))
    visual = (batch["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0].tolist()
    sources = {f"set {k}": visual[k :: setting.sets] for k in range(setting.sets)}
    width = model.config.text_config.hidden_size
    content = torch.randn(len(visual), width, device=model.device, dtype=model.dtype)
    embeddings = torch.randn(1, setting.tokens, width, device=model.device, dtype=model.dtype)
    extract, options = interp.extract, {"positions": rows}

    def decoder():
        with torch.no_grad():
            families.parts(model).language_model(inputs_embeds=embeddings, use_cache=True)

    return {
        "forward": lambda: _forward(model, batch),
        "decoder": decoder,
        "ledger": lambda: extract.ledger(model, batch, detail="tokens", **options),
        "effects": lambda: extract.effects(model, batch, sources=sources, **options),
        "shapley": lambda: extract.shapley(model, batch, references={"one": content}, **options),
        "first_order": lambda: extract.first_order(model, batch, **options),
        "patch_effects": lambda: extract.patch_effects(model, batch, positions=rows[-1:]),
        **_batch_tasks(model, batch, options | {"sources": sources}, setting.sequences),
    }


def _batch_tasks(model, batch: dict, sample_options: dict, n_sequences: int) -> dict[str, Callable]:
    """A plain forward and extractions of several equal sequences at once."""
    import torch

    from interp.extract import each

    joint_batch = {name: torch.cat([value] * n_sequences) for name, value in batch.items()}

    def extraction(name: str, *own: str, **options) -> Callable:
        samples = [(batch, {key: sample_options[key] for key in own})] * n_sequences
        return lambda: list(each(name, model, samples, max_memory=2**50, **options))

    return {
        "forward of a batch": lambda: _forward(model, joint_batch),
        "ledger of a batch": extraction("ledger", "positions", detail="tokens"),
        "effects of a batch": extraction("effects", "positions", "sources"),
        "first_order of a batch": extraction("first_order", "positions"),
    }


def map_tasks(model, setting: Setting) -> dict[str, Callable]:
    """Saliency maps of a picture and a text, and a plain forward over the same tokens."""
    from interp import extract
    from interp.inputs import prompts as inputs

    n_visual = setting.tokens - MAP_TEXT_TOKENS
    vlm, sample = as_vlm(model, n_visual), make_sample(n_visual)
    text = make_text(vlm.processor, 24)
    batch = inputs.teacher_forced(vlm.processor, sample, None, text).batch
    batch = {name: value.to(vlm.device) for name, value in batch.items()}
    options = {"completion": text, "max_targets": setting.targets}
    return {
        "forward of a text": lambda: _forward(model, batch),
        "maps": lambda: extract.maps(vlm, sample, kinds=MAP_KINDS, **options),
    }


def _forward(model, batch) -> None:
    import torch

    with torch.no_grad():
        model(**batch, use_cache=True, logits_to_keep=1)


def seconds(function: Callable, device: str) -> float:
    """Wall time of one call."""
    import torch

    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turns(names: list[str], todo: dict[str, Callable], repeats: int, device: str) -> dict:
    """Seconds of each task by round, after one uncounted warm-up."""
    for name in names:
        todo[name]()
    rounds = [[seconds(todo[name], device) for name in names] for _ in range(repeats)]
    return {name: list(times) for name, times in zip(names, zip(*rounds, strict=True), strict=True)}


def compared(times: list[float], against: list[float]) -> dict:
    """Median, least and largest ratio of a task to a plain forward, round by round."""
    ratios = sorted(a / b for a, b in zip(times, against, strict=True))
    return {
        "ratio_median": median(ratios),
        "ratio_range": [ratios[0], ratios[-1]],
        "seconds_median": median(times),
        "forward_seconds_median": median(against),
    }


def paired(name: str, todo: dict[str, Callable], repeats: int, device: str) -> dict:
    """A task compared to a plain forward, taken in turns.

    The forward is the whole model's; for exact patch maps the text decoder's, as there is one
    prefill for all targets and the maps are counted per target.
    """
    if name == "patch_effects":  # without the prefill, which all targets share
        names = [name, "decoder", "forward"]
        times, decoder, forward = in_turns(names, todo, repeats, device).values()
        return compared([a - b for a, b in zip(times, forward, strict=True)], decoder)
    against = "forward"
    if name.endswith("of a batch"):
        against = "forward of a batch"
    if name == "maps":
        against = "forward of a text"
    return compared(*in_turns([name, against], todo, repeats, device).values())


def peak_memory(setting: Setting, name: str) -> dict[str, int]:
    """Peak bytes of a process that makes the model and runs one task, and before the task."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(PRELOADED)  # imports are done once, and are in every peak
    with processes.Pool(1) as pool:
        return pool.apply(_peak, (setting, name))


def _peak(setting: Setting, name: str) -> dict[str, int]:
    import torch

    torch.set_num_threads(setting.threads)
    model = make_model(setting)
    todo = tasks(model, setting)
    return peak_of(todo[name], setting.device)


def peak_of(task: Callable, device: str) -> dict[str, int]:
    """Peak bytes of this process (of the allocator on a GPU) during a task, and before it."""
    import torch

    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        task()
        return {"peak": torch.cuda.max_memory_allocated(), "before": before}
    # Making the model needs more than running it: the peak counts from here on.
    Path("/proc/self/clear_refs").write_text("5")
    before = psutil.Process().memory_info().rss
    task()
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = int(dict(line.split(":", 1) for line in lines)["VmHWM"].split()[0]) * 2**10
    return {"peak": peak, "before": before}
