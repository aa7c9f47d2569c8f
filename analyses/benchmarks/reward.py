"""Share of a GRPO step that a saliency reward adds, from measured forwards at real widths.

A step is, per completion: the prompt's prefill, as many decoding steps as the completion has tokens
(a group of completions at a time, as Hugging Face's generation does it), the reference's forward,
and the policy's forward and backward with LoRA and gradient checkpointing. What grows with the
decoder's layers is measured at two depths and extended to the model's own; on a GPU the whole model
and the whole generation are measured.
"""

from collections.abc import Callable
from dataclasses import replace
from statistics import median

from analyses.benchmarks.models import SHAPES, Setting, as_vlm, make_model, make_sample, make_text
from analyses.benchmarks.timing import in_turns, seconds

DEPTHS = (1, 3)
GROUP = 8  # completions of a prompt that are decoded together
N_DECODED = 4  # decoding steps that are timed
RULES = ("direct", "effect")


def reward_cost(
    setting: Setting,
    n_prompt: int,
    n_new: int,
    repeats: int,
    *,
    is_extended: bool = True,
    write: Callable[[dict], None] = lambda record: None,
) -> dict:
    """Seconds of every part of a step per completion, and what each reward adds, as a share.

    Args:
        setting: whose widths; its layers are those to extend to.
        n_prompt: visual tokens of the prompt, about.
        n_new: tokens of a completion.
        repeats: rounds, of which the median counts.
        is_extended: measure two shallow models and a few decoding steps, and extend; otherwise all
            layers and a whole generation are measured.
        write: takes the seconds of all but a whole generation, which comes last, once measured.
    """
    layers = SHAPES[setting.shape][5]
    depths = DEPTHS if is_extended else (layers,)
    by_depth = {}
    for depth in depths:
        depth_setting = replace(setting, layers=depth)
        by_depth[depth] = _parts(
            depth_setting, n_prompt, n_new, repeats, is_extended=is_extended, write=write
        )
    seconds_by_part = by_depth[depths[-1]]
    if is_extended:
        shallow, deep = (by_depth[depth] for depth in depths)
        seconds_by_part = {}
        for name, first in shallow.items():
            per_layer = (deep[name] - first) / (depths[1] - depths[0])
            seconds_by_part[name] = first + per_layer * (layers - depths[0])
    step = sum(seconds for name, seconds in seconds_by_part.items() if name not in RULES)
    return {
        "layers": layers,
        "prompt": n_prompt,
        "new_tokens": n_new,
        "group": GROUP,
        "is_extended": is_extended,
        "measured_seconds": by_depth,
        "step_parts_seconds": seconds_by_part,
        "step_seconds": step,
        "added": {rule: seconds_by_part[rule] / step for rule in RULES},
        "added_without_decoding": {
            rule: seconds_by_part[rule] / (step - seconds_by_part["decoding"]) for rule in RULES
        },
    }


def _parts(
    setting: Setting, n_prompt: int, n_new: int, repeats: int, *, is_extended: bool, write
) -> dict[str, float]:
    """Seconds per completion at one depth."""
    vlm, sample, text = _case(setting, n_prompt, n_new)
    todo = _tasks(vlm, sample, text, n_new)
    per_completion = n_new / N_DECODED / GROUP
    if not is_extended:
        del todo["prefill"], todo["decoding"]  # a whole generation has both
    rounds = in_turns(list(todo), todo, repeats, setting.device)
    seconds_by_part = {name: median(times) for name, times in rounds.items()}
    write({"layers": setting.layers, "seconds": dict(seconds_by_part)})
    if not is_extended:
        # Once, and last: hundreds of equal steps need no warm-up, and take longest.
        seconds_by_part["decoding"] = seconds(_generation(vlm, sample, n_new), setting.device)
        per_completion = 1 / GROUP
    seconds_by_part["decoding"] *= per_completion
    return seconds_by_part


def _generation(vlm, sample, n_new: int) -> Callable[[], None]:
    """A group of completions of full length, sampled as TRL has them sampled."""
    import torch

    from interp.inputs import prompts as inputs

    prompt = inputs.prompts(vlm.processor, [(sample.image, sample.question)] * GROUP, None)
    prompt = prompt.to(vlm.device)

    def generate():
        with torch.no_grad():
            sequences = vlm.model.generate(
                **prompt, do_sample=True, max_new_tokens=n_new, min_new_tokens=n_new
            )
        assert sequences.shape == (GROUP, prompt["input_ids"].shape[1] + n_new)

    return generate


def _case(setting: Setting, n_prompt: int, n_new: int):
    """A random policy with LoRA on the embedded processor's tokens, and one completion."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=16, target_modules=["q_proj", "v_proj"])
    policy = get_peft_model(make_model(setting), config)
    vlm = as_vlm(policy, n_prompt)
    return vlm, make_sample(n_prompt), make_text(vlm.processor, n_new)


def _tasks(vlm, sample, text, n_new: int) -> dict:
    """Functions to time, by name."""
    import torch

    from interp.inputs import prompts as inputs
    from interp.scoring import scores

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
