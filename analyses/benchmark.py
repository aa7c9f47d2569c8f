r"""Cost of extraction, as ratios to the plain forward of the same model in the same run.

    python analyses/benchmark.py                                  # 3B's width, 4 layers, CPU
    python analyses/benchmark.py --growth                         # and how it grows: half an hour
    python analyses/benchmark.py --shape 7b --layers 28 --device cuda --dtype bfloat16 \\
        --tokens 1000 4000 --sequences 16

Random weights at real widths; an image makes up most of the tokens. Writes JSON, and with --growth
a figure and a table beside it.
"""

import json
import sys
from pathlib import Path

from analyses.benchmarks.models import SHAPES, TEXT_TOKENS, Setting, make_model
from analyses.benchmarks.options import Benchmark
from analyses.benchmarks.timing import EXTRACTIONS, paired, peak_memory, tasks
from analyses.run.arguments import parse


def at_length(model, setting: Setting, options: Benchmark) -> dict:
    """All extractions at one length."""
    todo, n_tokens = tasks(model, setting), setting.tokens
    names = [*EXTRACTIONS, *(["ledger of a batch"] if setting.sequences > 1 else [])]
    timings = {name: paired(name, todo, options.repeats, setting.device) for name in names}
    measured = ("forward", *(EXTRACTIONS if options.all_memory else EXTRACTIONS[:2]))
    peaks = {name: peak_memory(setting, name)["peak"] for name in measured}
    for name, timing in timings.items():
        if name in peaks:
            timing["memory_ratio"] = peaks[name] / peaks["forward"]
        print(
            f"{n_tokens} tokens, {name}: {timing['ratio_median']:.3f} of the forward "
            f"[{timing['ratio_range'][0]:.3f}, {timing['ratio_range'][1]:.3f}], "
            f"memory {timing.get('memory_ratio', float('nan')):.3f}",
            flush=True,
        )
    n_visual = int((n_tokens - TEXT_TOKENS) ** 0.5) ** 2
    patches = timings["patch_effects"]
    patches["occlusion_speedup"] = n_visual / (1 + patches["ratio_median"])
    print(
        f"{n_tokens} tokens: maps of {n_visual} patches for one target, with the prefill, "
        f"{patches['occlusion_speedup']:.0f} times as fast as {n_visual} occluded forwards"
    )
    return timings | {"forward_peak_bytes": peaks["forward"]}


def head_of(setting: Setting, repeats: int) -> dict:
    """Description of the model and the machine."""
    import torch

    heads, kv_heads, width, _, vocabulary, _, _ = SHAPES[setting.shape]
    device = "cpu" if setting.device == "cpu" else torch.cuda.get_device_name()
    return {
        "shape": setting.shape,
        "layers": setting.layers,
        "width": width,
        "heads": [heads, kv_heads],
        "vocabulary": vocabulary,
        "rows": setting.targets,
        "source_sets": setting.sets,
        "sequences": setting.sequences,
        "device": device,
        "dtype": setting.dtype,
        "threads": setting.threads,
        "torch": torch.__version__,
        "repeats": repeats,
    }


def grow(setting: Setting, options: Benchmark, path: Path) -> dict:
    """The sweeps, drawn."""
    from analyses.benchmarks.growth import draw_growth, measure_growth

    axes = list(options.growth) or ["tokens", "targets", "sets"]
    records = measure_growth(setting, options.repeats, axes)
    title = (
        f"{setting.shape} width, {setting.layers} layers, {setting.dtype}, {setting.device}; "
        f"where not varied {setting.tokens} tokens, {setting.targets} targets, {setting.sets} sets"
    )
    draw_growth(records, path, title)
    return {"growth": records}


def in_training(setting: Setting, options: Benchmark) -> dict:
    """Measures and prints how much a reward adds to a GRPO step."""
    from analyses.benchmarks.reward import reward_cost

    cost = reward_cost(setting, setting.tokens, 512, options.repeats)
    for name, share in cost["added"].items():
        print(
            f"{name}: adds {100 * share:.1f} % to a step of {cost['step_seconds']:.0f} s per "
            f"completion of {cost['new_tokens']} tokens, of which decoding is "
            f"{cost['step_parts_seconds']['decoding']:.0f} s"
        )
    return {"reward": cost}


def at_all_lengths(setting: Setting, options: Benchmark) -> dict:
    """The extractions at every length, and the release's arithmetic."""
    from dataclasses import replace

    from analyses.benchmarks.release import release_arithmetic

    model = make_model(setting)
    by_tokens = {n: at_length(model, replace(setting, tokens=n), options) for n in options.tokens}
    if options.skip_release:
        return {"by_tokens": by_tokens}
    against = release_arithmetic(setting)
    print(f"folded extraction: {against['speedup']:.0f} times the release's speed")
    return {"by_tokens": by_tokens, "release_arithmetic": against}


def main() -> int:
    """Measures, prints and writes JSON."""
    options = parse(Benchmark, __doc__)
    import torch

    torch.set_num_threads(options.threads)
    setting = Setting(
        shape=options.shape,
        layers=options.layers,
        device=options.device,
        dtype=options.dtype,
        threads=options.threads,
        tokens=options.tokens[0],
        sequences=options.sequences,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    kind = "gpu" if options.device != "cpu" else "cpu"
    stem = f"{options.shape}-{options.layers}-layers-{kind}-{options.dtype}"
    if options.growth is not None:
        if "layers" in options.growth:
            stem = f"{options.shape}-{kind}-{options.dtype}"
        path = options.out / f"{stem}-growth.json"
        results = grow(setting, options, path)
    elif options.reward:
        path = options.out / f"{options.shape}-reward-{kind}-{options.dtype}.json"
        results = in_training(setting, options)
    else:
        path = options.out / f"{stem}.json"
        results = at_all_lengths(setting, options)
    path.write_text(json.dumps(head_of(setting, options.repeats) | results, indent=1) + "\n")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
