"""What a saliency reward adds to a GRPO step, from measured forwards at real widths.

A step is, per completion: the prompt's prefill, as many decoding steps as the completion has tokens
(a group of completions at a time, as Hugging Face's generation does it), the reference's forward,
and the policy's forward and backward with LoRA and gradient checkpointing. What grows with the
decoder's layers is measured at two depths and extended to the model's own.
"""

from dataclasses import replace
from statistics import median

from analyses.random_models import SHAPES, Setting, make_model
from analyses.timing import seconds

DEPTHS = (1, 3)
GROUP = 8  # completions of a prompt that are decoded together
N_DECODED = 4  # decoding steps that are timed
N_ANSWER = 8
RULES = ("direct", "effect")


def reward_cost(setting: Setting, n_prompt: int, n_new: int, repeats: int) -> dict:
    """Seconds of every part of a step per completion, and what each reward adds, as a share.

    Args:
        setting: whose widths; its layers are those to extend to.
        n_prompt: visual tokens of the prompt, about.
        n_new: tokens of a completion.
        repeats: rounds, of which the median counts.
    """
    by_depth = {}
    for depth in DEPTHS:
        by_depth[depth] = _parts(replace(setting, layers=depth), n_prompt, n_new, repeats)
    shallow, deep = (by_depth[depth] for depth in DEPTHS)
    layers = SHAPES[setting.shape][5]
    whole = {}
    for name, first in shallow.items():
        per_layer = (deep[name] - first) / (DEPTHS[1] - DEPTHS[0])
        whole[name] = first + per_layer * (layers - DEPTHS[0])
    step = sum(whole[name] for name in ("prefill", "decoding", "reference", "training"))
    return {
        "layers": layers, "prompt": n_prompt, "new_tokens": n_new, "group": GROUP,
        "measured_seconds": by_depth, "extended_seconds": whole, "step_seconds": step,
        "added": {rule: whole[rule] / step for rule in RULES},
        "added_without_decoding": {
            rule: whole[rule] / (step - whole["decoding"]) for rule in RULES
        },
    }  # fmt: skip


def _parts(setting: Setting, n_prompt: int, n_new: int, repeats: int) -> dict[str, float]:
    """Seconds per completion at one depth."""
    vlm, sample, text = _case(setting, n_prompt, n_new)
    todo = _tasks(vlm, sample, text, n_new)
    for task in todo.values():
        task()
    rounds = [{k: seconds(t, setting.device) for k, t in todo.items()} for _ in range(repeats)]
    found = {name: median(one[name] for one in rounds) for name in todo}
    found["decoding"] *= n_new / N_DECODED / GROUP
    return found


def _case(setting: Setting, n_prompt: int, n_new: int):
    """A random model that reads the embedded processor's tokens, with LoRA, and one completion."""
    import numpy as np
    import torch
    from peft import LoraConfig, get_peft_model
    from PIL import Image

    from interp import inputs, weights
    from interp.model import VLM
    from interp.sample import Sample

    cell = 28
    side = int(n_prompt**0.5)
    small = weights.load("tiny", device="cpu", max_pixels=(side * cell) ** 2)
    processor, made = small.processor, make_model(setting)
    for name in ("image_token_id", "video_token_id", "vision_start_token_id",
                 "vision_end_token_id"):  # fmt: skip
        setattr(made.config, name, getattr(small.model.config, name))
    config = LoraConfig(r=16, target_modules=["q_proj", "v_proj"])
    policy = get_peft_model(made, config)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (side * cell, side * cell, 3), dtype=np.uint8)
    boxes = np.array([[0.2, 0.2, 0.6, 0.5]])
    sample = Sample("one", Image.fromarray(pixels), "which digit is red?", "7", boxes=boxes)
    tokenizer = processor.tokenizer
    word = tokenizer("digit", add_special_tokens=False).input_ids[:1]
    opening, closing = (
        tokenizer(tag, add_special_tokens=False).input_ids for tag in ("<think>\n", "\n</think>\n")
    )
    n_thinking = n_new - len(opening) - len(closing) - N_ANSWER - 1
    ids = [*opening, *word * n_thinking, *closing, *word * N_ANSWER, tokenizer.eos_token_id]
    with torch.no_grad():
        vlm = VLM(policy, processor, "random", "plain", "")
    return vlm, sample, inputs.completion(tokenizer, ids)


def _tasks(vlm, sample, text, n_new: int) -> dict:
    """What is timed, by name."""
    import torch

    from interp import inputs
    from interp.scores import scores

    policy = vlm.model
    batch = inputs.teacher_forced(vlm.processor, sample, None, text).batch.to(vlm.device)
    prompt = inputs.prompts(vlm.processor, [(sample.image, sample.question)], None)
    prompt = prompt.to(vlm.device)
    group = {name: torch.cat([value] * GROUP) for name, value in prompt.items()}

    def prefill():
        with torch.no_grad():
            return policy(**prompt, use_cache=True, logits_to_keep=1)

    with torch.no_grad():
        cache = policy(**group, use_cache=True, logits_to_keep=1).past_key_values
    token = batch["input_ids"][:, -2:-1].expand(GROUP, 1)

    def decode():
        with torch.no_grad():
            for _ in range(N_DECODED):
                policy(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1)

    def reference():
        with torch.no_grad():
            policy(**batch, logits_to_keep=n_new + 1)

    def train():
        policy.train()
        policy.gradient_checkpointing_enable()
        policy.enable_input_require_grads()
        logits = policy(**batch, logits_to_keep=n_new + 1, use_cache=False).logits
        logits.float().logsumexp(dim=-1).mean().backward()
        policy.zero_grad()
        policy.gradient_checkpointing_disable()
        policy.eval()

    rewards = {rule: lambda rule=rule: scores(vlm, [(sample, text)], rule=rule) for rule in RULES}
    parts = {"prefill": prefill, "decoding": decode, "reference": reference, "training": train}
    return parts | rewards
