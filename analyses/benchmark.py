r"""What extraction costs, as ratios to the plain forward of the same model in the same run.

    python analyses/benchmark.py                                  # 3B's width, 4 layers, CPU
    python analyses/benchmark.py --shape 7b --layers 28 --device cuda --dtype bfloat16 \\
        --tokens 1000 4000

Random weights at real widths; an image makes up most of the tokens. Machines are noisy: plain
forward and extraction take turns, and the median of the pairwise ratios is reported with its
range. Memory is the peak of a process (of the allocator on a GPU), each measured in its own.
"""

import argparse
import json
import multiprocessing
import sys
import time
from pathlib import Path

# heads, key/value heads, width, FFN width, vocabulary, layers, tied embeddings
SHAPES = {
    "3b": (16, 2, 2048, 11008, 151936, 36, True),
    "7b": (28, 4, 3584, 18944, 152064, 28, False),
    "toy": (4, 2, 64, 96, 500, 2, True),
}
N_ROWS = 8
SETS = 5
EXTRACTIONS = ("ledger", "effects", "shapley", "first_order", "patch_effects")
TEXT_TOKENS = 12


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--shape", choices=list(SHAPES), default="3b", help="whose widths (default: 3b)")
    add("--layers", type=int, default=4, help="decoder layers (default: 4)")
    add("--tokens", type=int, nargs="+", default=[741], help="sequence lengths (default: 741)")
    add("--repeats", type=int, default=5, help="pairs of runs (default: 5)")
    add("--device", default="cpu")
    add("--dtype", default="float32", choices=("float32", "bfloat16"))
    add("--threads", type=int, default=1, help="CPU threads (default: 1)")
    add("--all-memory", action="store_true", help="peak memory of every extraction")
    add("--skip-release", action="store_true", help="leave out the release's arithmetic (a minute)")
    add("--out", type=Path, default=Path("reports/benchmarks"), help="folder of the JSON file")
    return parser.parse_args()


# ----------------------------------------------------------------------------------- the model


def make_model(options: argparse.Namespace):
    """A random Qwen2.5-VL at real decoder widths with a small vision tower."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    heads, kv_heads, width, ffn, vocabulary, _, tied = SHAPES[options.shape]
    pairs = width // heads // 2
    section = [
        pairs // 4,
        (pairs - pairs // 4) // 2,
        pairs - pairs // 4 - (pairs - pairs // 4) // 2,
    ]
    last = vocabulary - 1
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": vocabulary, "hidden_size": width, "intermediate_size": ffn,
            "num_hidden_layers": options.layers, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "max_position_embeddings": 32768,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e6, "mrope_section": section,
            },
            "tie_word_embeddings": tied, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
        },
        vision_config={"depth": 1, "hidden_size": 64, "intermediate_size": 64, "num_heads": 2,
                       "out_hidden_size": width, "fullatt_block_indexes": [0]},
        tie_word_embeddings=tied, image_token_id=last, video_token_id=last - 1,
        vision_start_token_id=last - 2, vision_end_token_id=last - 3,
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, options.dtype))
    with torch.device(options.device):
        model = Qwen2_5_VLForConditionalGeneration(config).eval()
    torch.set_default_dtype(torch.float32)
    return model


def make_batch(model, n_tokens: int):
    """An image of about n_tokens - 12 visual tokens and text behind it, as a processor gives it."""
    import torch

    side = max(int((n_tokens - TEXT_TOKENS) ** 0.5), 1)
    n_visual = side * side
    n_text = n_tokens - n_visual
    config, device = model.config, model.device
    ids = torch.randint(1, config.text_config.vocab_size - 10, (1, n_tokens), device=device)
    ids[0, 2 : 2 + n_visual] = config.image_token_id
    assert n_text >= TEXT_TOKENS
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == config.image_token_id).long(),
        "pixel_values": torch.randn(4 * n_visual, 1176, device=device, dtype=model.dtype),
        "image_grid_thw": torch.tensor([[1, 2 * side, 2 * side]], device=device),
    }


def tasks(model, batch) -> dict:
    """What is timed: name -> function."""
    import torch

    import interp

    n_tokens = batch["input_ids"].shape[1]
    rows = list(range(n_tokens - N_ROWS - 1, n_tokens - 1))
    visual = (batch["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0].tolist()
    sources = {f"set {k}": visual[k::SETS] for k in range(SETS)}

    width = model.config.text_config.hidden_size
    content = torch.randn(len(visual), width, device=model.device, dtype=model.dtype)
    embeddings = torch.randn(1, n_tokens, width, device=model.device, dtype=model.dtype)
    extract, asked = interp.extract, {"positions": rows}

    def forward():
        with torch.no_grad():
            model(**batch, use_cache=True, logits_to_keep=1)

    def decoder():
        with torch.no_grad():
            model.model.language_model(inputs_embeds=embeddings, use_cache=True)

    return {
        "forward": forward,
        "decoder": decoder,
        "ledger": lambda: extract.ledger(model, batch, detail="tokens", **asked),
        "effects": lambda: extract.effects(model, batch, sources=sources, **asked),
        "shapley": lambda: extract.shapley(model, batch, references={"one": content}, **asked),
        "first_order": lambda: extract.first_order(model, batch, **asked),
        "patch_effects": lambda: extract.patch_effects(model, batch, positions=rows[-1:]),
    }


# ----------------------------------------------------------------------------------- measuring


def seconds(function, device: str) -> float:
    """Wall time of one call."""
    import torch

    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def paired(name: str, todo: dict, options: argparse.Namespace) -> dict:
    """Median, least and largest ratio of a task to a plain forward, taken in turns.

    The forward is the whole model's; for exact patch maps the text decoder's, as there is one
    prefill for all targets and the maps are counted per target.
    """
    against = "decoder" if name == "patch_effects" else "forward"
    todo[against](), todo[name]()
    pairs = [
        (seconds(todo[name], options.device), seconds(todo[against], options.device))
        for _ in range(options.repeats)
    ]
    if name == "patch_effects":  # without the prefill, which all targets share
        prefill = sorted(seconds(todo["forward"], options.device) for _ in range(options.repeats))
        pairs = [(a - prefill[len(prefill) // 2], b) for a, b in pairs]
    ratios = sorted(a / b for a, b in pairs)
    return {
        "ratio_median": ratios[len(ratios) // 2],
        "ratio_range": [ratios[0], ratios[-1]],
        "seconds_median": sorted(a for a, _ in pairs)[len(pairs) // 2],
        "forward_seconds_median": sorted(b for _, b in pairs)[len(pairs) // 2],
    }


def peak_memory(options: argparse.Namespace, n_tokens: int, name: str) -> int:
    """Peak bytes of a process that makes the model and runs one task, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (options, n_tokens, name))


def _peak(options: argparse.Namespace, n_tokens: int, name: str) -> int:
    import torch

    torch.set_num_threads(options.threads)
    model = make_model(options)
    todo = tasks(model, make_batch(model, n_tokens))
    if options.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        todo[name]()
        return torch.cuda.max_memory_allocated()
    # Making the model needs more than running it: the peak counts from here on.
    Path("/proc/self/clear_refs").write_text("5")
    todo[name]()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


# ------------------------------------------------------------------------ against the release


def release_arithmetic(
    options: argparse.Namespace, n_tokens=1024, n_visual=729, n_answer=8
) -> dict:
    """Extraction alone for one layer and the head, folded and as Saliency-R1's release does it.

    The release gets all attention weights by attending to an identity matrix, projects the weighted
    values of every visual token through W_o, and sends each result through the whole lm_head.
    """
    import torch

    from interp.ledger import slot_scores

    heads, kv_heads, width, _, vocabulary, _, _ = SHAPES[options.shape]
    d_head, dtype, device = width // heads, getattr(torch, options.dtype), options.device
    torch.manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, dtype=dtype, device=device)

    query, key = random(1, heads, n_tokens, d_head), random(1, kv_heads, n_tokens, d_head)
    values, w_o = random(1, kv_heads, n_tokens, d_head), random(width, width) / width**0.5
    head_rows = random(vocabulary, width) / width**0.5
    targets = torch.arange(n_answer, device=device)
    rows = torch.arange(n_tokens - n_answer, n_tokens, device=device)
    visual = slice(1, 1 + n_visual)
    group = heads // kv_heads
    found = {}

    def release():
        eye = torch.eye(n_tokens, dtype=dtype, device=device).expand(1, heads, -1, -1).contiguous()
        keys = key.repeat_interleave(group, 1)
        weights = torch.nn.functional.scaled_dot_product_attention(query, keys, eye, is_causal=True)
        weighted = torch.einsum("htv,hvd->tvhd", weights[0][:, rows, visual],
                                values[0].repeat_interleave(group, 0)[:, visual])  # fmt: skip
        written = weighted.reshape(n_answer, n_visual, width) @ w_o.T
        found["release"] = torch.stack(
            [(one @ head_rows.T)[:, target] for one, target in zip(written, targets, strict=True)]
        )

    def folded():
        back = (head_rows[targets] @ w_o).reshape(n_answer, heads, d_head)
        scores = query[0][:, rows].reshape(kv_heads, group * n_answer, d_head) @ key[0].mT
        scores = scores.reshape(heads, n_answer, n_tokens) * d_head**-0.5
        later = torch.arange(n_tokens, device=device) > rows.reshape(-1, 1)
        weights = scores.masked_fill(later, -torch.inf).softmax(dim=-1)
        direct = weights.permute(1, 0, 2) * slot_scores(back, values)
        found["folded"] = direct.sum(dim=1)[:, visual]

    release(), folded()
    slow = sorted(seconds(release, device) for _ in range(3))[1]
    fast = sorted(seconds(folded, device) for _ in range(21))[10]
    error = (found["release"] - found["folded"]).abs().max() / found["release"].abs().max()
    return {"speedup": slow / fast, "folded_seconds": fast, "release_seconds": slow,
            "largest_relative_difference": float(error)}  # fmt: skip


def main() -> int:
    """Measures, prints and writes JSON."""
    options = arguments()
    import torch

    torch.set_num_threads(options.threads)
    model = make_model(options)
    heads, kv_heads, width, _, vocabulary, _, _ = SHAPES[options.shape]
    result = {
        "shape": options.shape, "layers": options.layers, "width": width,
        "heads": [heads, kv_heads],
        "vocabulary": vocabulary, "rows": N_ROWS, "source_sets": SETS,
        "device": device_name(options),
        "dtype": options.dtype, "threads": options.threads, "torch": torch.__version__,
        "repeats": options.repeats, "by_tokens": {},
    }  # fmt: skip
    for n_tokens in options.tokens:
        todo = tasks(model, make_batch(model, n_tokens))
        found = {name: paired(name, todo, options) for name in EXTRACTIONS}
        measured = ("forward", *(EXTRACTIONS if options.all_memory else EXTRACTIONS[:2]))
        peaks = {name: peak_memory(options, n_tokens, name) for name in measured}
        for name, one in found.items():
            if name in peaks:
                one["memory_ratio"] = peaks[name] / peaks["forward"]
            print(
                f"{n_tokens} tokens, {name}: {one['ratio_median']:.3f} of the forward "
                f"[{one['ratio_range'][0]:.3f}, {one['ratio_range'][1]:.3f}], "
                f"memory {one.get('memory_ratio', float('nan')):.3f}",
                flush=True,
            )
        n_visual = int((make_batch(model, n_tokens)["mm_token_type_ids"] == 1).sum())
        patches = found["patch_effects"]
        patches["occlusion_speedup"] = n_visual / (1 + patches["ratio_median"])
        print(
            f"{n_tokens} tokens: maps of {n_visual} patches for one target, with the prefill, "
            f"{patches['occlusion_speedup']:.0f} times as fast as {n_visual} occluded forwards"
        )
        result["by_tokens"][n_tokens] = found | {"forward_peak_bytes": peaks["forward"]}
    if not options.skip_release:
        result["release_arithmetic"] = against = release_arithmetic(options)
        print(f"folded extraction: {against['speedup']:.0f} times the release's speed")
    options.out.mkdir(parents=True, exist_ok=True)
    kind = "gpu" if options.device != "cpu" else "cpu"
    path = options.out / f"{options.shape}-{options.layers}-layers-{kind}-{options.dtype}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(path)
    return 0


def device_name(options: argparse.Namespace) -> str:
    """CPU or the GPU's name."""
    import torch

    return "cpu" if options.device == "cpu" else torch.cuda.get_device_name()


if __name__ == "__main__":
    sys.exit(main())
