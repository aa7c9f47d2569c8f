"""Share of a GRPO step that rewards and losses add, from measured forwards at real widths.

A step is, per completion: the prompt's prefill, as many decoding steps as the completion has tokens
(a group of completions at a time, as Hugging Face's generation does it), the reference's forward,
and the policy's forward and backward with LoRA and gradient checkpointing. What grows with the
decoder's layers is measured at two depths and extended to the model's own; on a GPU the whole model
and the whole generation are measured.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median

from analyses.benchmarks.models import SHAPES, Setting, as_vlm, make_model, make_sample, make_text
from analyses.benchmarks.timing import in_turns, seconds

DEPTHS = (1, 3)
GROUP = 8  # completions of a prompt that are decoded together
N_DECODED = 4  # decoding steps that are timed
RULES = ("direct", "effect")
STEP = ("prefill", "decoding", "reference", "training")
TRAINED = "training with "


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
    step = sum(seconds for name, seconds in seconds_by_part.items() if name in STEP)
    added = {
        name.removeprefix(TRAINED): seconds - seconds_by_part["training"] * (TRAINED in name)
        for name, seconds in seconds_by_part.items()
        if name not in STEP
    }
    return {
        "layers": layers,
        "prompt": n_prompt,
        "new_tokens": n_new,
        "group": GROUP,
        "is_extended": is_extended,
        "measured_seconds": by_depth,
        "step_parts_seconds": seconds_by_part,
        "step_seconds": step,
        "added": {name: seconds / step for name, seconds in added.items()},
        "added_without_decoding": {
            name: seconds / (step - seconds_by_part["decoding"]) for name, seconds in added.items()
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
    for rule in RULES:
        seconds_by_part[f"{rule} from prompts"] /= GROUP
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

    from interp.capture.heard import hearing
    from interp.inputs import prompts as inputs
    from interp.model import families
    from train.losses import Ease, MapGradient

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

    def train(losses=()):
        policy.train()
        policy.gradient_checkpointing_enable({"use_reentrant": False})
        policy.enable_input_require_grads()
        layers = {n for one in losses for n in one.layers(families.parts(policy))}
        with hearing(policy, layers) as heard:
            logits = policy(**batch, logits_to_keep=n_new + 1, use_cache=False).logits
        total = logits.float().logsumexp(dim=-1).mean()
        for loss in losses:
            total = total + loss(heard, micro_batch, lambda _name, _value: None).sum()
        total.backward()
        policy.zero_grad()
        policy.gradient_checkpointing_disable()
        policy.eval()

    micro_batch = _micro_batch(vlm, sample, text, batch)
    parts = {"prefill": prefill, "decoding": decode, "reference": reference, "training": train}
    for loss in (Ease(), MapGradient(), MapGradient(rule="bottleneck", name="map_gradient_2")):
        parts[f"{TRAINED}{loss.name}"] = partial(train, [loss])
    return parts | _rewards(vlm, sample, text, prompt, n_new)


def _rewards(vlm, sample, text, prompt, n_new: int) -> dict:
    """Maps of one completion by where they come from; of a common prompt, a group's share."""
    import torch
    from transformers import DynamicCache

    from analyses.benchmarks.models import make_text
    from interp.capture.extended import extended
    from interp.capture.generated import Generated
    from interp.scoring import saliencies

    policy, generated = vlm.model, Generated(vlm.model)
    ids = torch.tensor([text.token_ids], device=vlm.device)
    with torch.no_grad():
        policy(**prompt, past_key_values=DynamicCache(), use_cache=True, logits_to_keep=1)
        cache = generated.last.cache
        for step in range(n_new - 1):  # as if it had been sampled
            policy(
                input_ids=ids[:, step : step + 1],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
    group = [(sample, make_text(vlm.processor, n_new, number=k)) for k in range(GROUP)]

    def of_generation(queries, numbers):
        batches = [query.batch for query in queries]
        reason = generated.refusal(numbers, batches)
        assert not reason, reason
        return generated.prefills(numbers, batches)

    def of_prompt(queries, _numbers):
        return extended(policy, [query.batch for query in queries], [list(range(len(queries)))])

    def maps(texts, rule, forward=None):
        found = saliencies(vlm, texts, rule=rule, forward=forward, max_memory=64 * 2**30)
        assert not any(isinstance(one, str) for one in found), found

    todo = {}
    for rule in RULES:
        todo[rule] = partial(maps, [(sample, text)], rule)
        todo[f"{rule} from generation"] = partial(maps, [(sample, text)], rule, of_generation)
        todo[f"{rule} from prompts"] = partial(maps, group, rule, of_prompt)
    return todo


def _micro_batch(vlm, sample, text, batch):
    """One completion as the losses read it."""
    import torch

    from interp.inputs.tokens import token_table
    from train.losses.micro_batch import MicroBatch, Text

    size = [sample.image.size[::-1]]
    tokens = token_table(vlm.processor, batch, sample.boxes, size, None)
    n_prompt = len(tokens.ids) - len(text.token_ids)
    return MicroBatch(
        texts=[Text(sample, tokens, n_prompt, sample.boxes)],
        ids=batch["input_ids"],
        is_visible=batch["attention_mask"].bool(),
        n_left=[0],
        is_paid=torch.ones(1, dtype=torch.bool),
    )
