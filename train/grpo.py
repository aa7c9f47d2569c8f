"""Reinforcement learning with the extractor as reward, over TRL's GRPOTrainer and peft's LoRA.

    python -m train.grpo --config train/configs/tiny-direct.yaml
    accelerate launch --num_processes 8 -m train.grpo --config train/configs/qwen2.5-vl-3b.yaml

Every key of TRL's GRPOConfig can stand in the YAML file or on the command line, `loss_type: dapo`
and `use_vllm: true` among them. An interrupted run goes on from its last checkpoint when the same
command is given again, to the same weights. The adapter goes to OUTPUT_DIR/final and names its base
model by content: `interp.load_model("OUTPUT_DIR/final")` loads both.
"""

import json
import logging
import pkgutil
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pandas as pd
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOConfig, GRPOTrainer

import interp
from interp.loading import self_check
from interp.model.vlm import PROMPTS, VLM
from interp.scoring import RULES
from train.guide import Guide, losses_of, told
from train.judge import judge_from_environment
from train.losses import GuidedTrainer
from train.options import given
from train.policy import Policy, load_policy, lora, name_adapter
from train.refusals import in_one_line
from train.rewards import Reward, Term
from train.rewards.accuracy import Accuracy, Format
from train.rewards.counterfactual import KINDS as PAINTED
from train.rewards.counterfactual import Counterfactual
from train.rewards.placebos import PLACEBOS, Scaled, placebo_of
from train.rewards.saliency import Alignment, OfMap
from train.rewards.sources import SOURCES
from train.rows import questions
from train.usable import against_question, usable

# Of what TRL logs, and of what the reward does.
KEPT = (
    "step",
    "reward",
    "reward_std",
    "frac_reward_zero_std",
    "kl",
    "entropy",
    "step_time",
)
OURS = ("saliency/", "text/", "skipped/", "seconds/", "source/", "variance/", "correlation/")
OURS += ("ease/", "map_gradient/", "faithful/", "rolled/")
# Of the task, what an adapter tells of its training.
FACTS = (
    "map",
    "saliency_weight",
    "gate_on_accuracy",
    "placebo",
    "counterfactual",
    "counterfactual_weight",
    "scale_parts",
    "reward_function",
    "function_weight",
    "data",
    "split",
    "sample_seed",
)


@dataclass
class Task:
    """On what to train, for which reward."""

    n_samples: int = field(metadata={"help": "number of training samples, in the reader's order"})
    data: str = field(default="digits", metadata={"help": "as for interp.load_samples"})
    split: str = field(default="train", metadata={"help": "its split"})
    sample_seed: int = field(default=0, metadata={"help": "of the scenes, or of the rows' order"})
    map: str = field(default="direct", metadata={"help": "direct, effect, edge, or none"})
    saliency_weight: float = field(default=1.0, metadata={"help": "0 measures without paying"})
    gate_on_accuracy: bool = field(default=False, metadata={"help": "no saliency if wrong"})
    placebo: str = field(
        default="",
        metadata={"help": "rolled, random or length: paid in the map's place, as it varies"},
    )
    counterfactual: str = field(
        default="",
        metadata={"help": "pay attention on what depends on it: in-box, out-of-box, blank, noise"},
    )
    counterfactual_weight: float = field(default=1.0, metadata={"help": "of that part"})
    scale_parts: bool = field(
        default=False, metadata={"help": "divide each part by its spread inside its group"}
    )
    reward_function: str = field(
        default="",
        metadata={"help": "module:function from (map, sample, text) to one more part"},
    )
    function_weight: float = field(default=1.0, metadata={"help": "of that part"})
    sources: list[str] = field(
        default_factory=lambda: list(SOURCES),
        metadata={"help": "where maps come from, first come first: generation, prompts, texts"},
    )
    max_targets: int = field(default=64, metadata={"help": "tokens of a text that are explained"})
    n_nodes: int = field(default=2, metadata={"help": "of the effect map's quadrature"})
    map_memory: float = field(default=2.0, metadata={"help": "GiB that a batch of maps may need"})

    def __post_init__(self):
        known = {
            "map": (*RULES, "none"),
            "placebo": ("", *PLACEBOS),
            "counterfactual": ("", *PAINTED),
        }
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ValueError(f"expected --{name} of {values}, got {getattr(self, name)!r}")


def main(policy: Policy, task: Task, guide: Guide, config: GRPOConfig) -> None:
    """Trains from the last checkpoint in the output folder, if any; saves the adapter."""
    logging.basicConfig(level=config.get_process_log_level(), format="%(levelname)s %(message)s")
    if policy.lora_r == 0:
        raise ValueError("expected lora_r > 0, got 0; the adapter is what names its base")
    config.remove_unused_columns = False  # rows are made of their index, which no model reads
    out = Path(config.output_dir)
    vlm = load_policy(policy)
    self_check(vlm.model)
    reward = Reward(
        judge_from_environment(),
        terms(task),
        scale_parts=task.scale_parts,
        prompt=vlm.prompt,
        sources=task.sources,
    )
    losses = losses_of(guide)
    trainer = _trainer(losses, reward)(
        model=vlm.model,
        processing_class=vlm.processor,
        reward_funcs=reward,
        callbacks=[reward],
        args=config,
        train_dataset=_data(
            task, vlm, with_boxes=bool(task.map != "none" or losses or task.counterfactual)
        ),
        peft_config=lora(policy),
    )
    if trainer.is_world_process_zero():
        _same_as_before(out / "task.json", vars(policy) | vars(task) | vars(guide))
    trainer.train(resume_from_checkpoint=get_last_checkpoint(out) if out.is_dir() else None)
    trainer.save_model(out / "final")
    if trainer.is_world_process_zero():
        facts = {name: getattr(task, name) for name in FACTS} | told(guide)
        name_adapter(out / "final", vlm, policy, seed=config.seed, **facts)
        parts = [term.part.name for term in reward.terms]
        pd.DataFrame(curves(trainer.state.log_history, parts)).to_csv(
            out / "final" / "curves.csv", index=False, float_format="%.5g"
        )


def _trainer(losses: list, reward: Reward):
    """TRL's own trainer where nothing is added to its loss."""
    return partial(GuidedTrainer, losses=losses, reward=reward) if losses else GRPOTrainer


def terms(task: Task) -> list[Term]:
    """Terms that are paid or measured: accuracy, format, and the map or its placebo.

    Raises:
        ValueError: an unknown map or placebo, or a function that cannot be found.
    """
    found = [Term(Accuracy()), Term(Format())]
    options = {
        "max_targets": task.max_targets,
        "n_nodes": task.n_nodes,
        "max_memory": int(task.map_memory * 2**30),
    }
    if task.map != "none":
        saliency = Alignment(task.map, is_gated=task.gate_on_accuracy, **options)
        if task.placebo:
            placebo = placebo_of(task.placebo, rule=task.map, **options)
            found += [Term(Scaled(placebo, saliency), task.saliency_weight), Term(saliency, 0.0)]
        else:
            found.append(Term(saliency, task.saliency_weight))
    if task.counterfactual:
        found.append(Term(Counterfactual(task.counterfactual), task.counterfactual_weight))
    if task.reward_function:
        rule = "direct" if task.map == "none" else task.map
        function = _function(task.reward_function)
        part = OfMap(function, function.__name__, rule, **options)
        found.append(Term(part, task.function_weight))
    return found


def _function(name: str):
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"expected reward_function as module:function that can be imported, got {name!r}: "
            f"{error}"
        ) from error


def _same_as_before(path: Path, task: dict) -> None:
    """Writes down what is trained; raises ValueError if another training was begun in the folder.

    It would go on from the other's checkpoint, and the adapter would tell of the wrong reward.
    """
    if path.is_file():
        before = json.loads(path.read_text())
        changed = {k: (before.get(k), v) for k, v in task.items() if before.get(k) != v}
        if changed:
            raise ValueError(
                f"{path.parent}: expected the training that was begun there, got other "
                f"{changed} (before, now); choose another output_dir"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(task, indent=1) + "\n")


def curves(history: list[dict], parts: list[str]) -> list[dict]:
    """The trainer's log, a row per logged step: the reward's parts and how texts change."""
    kept = {*KEPT, *parts}
    rows = [row for row in history if "reward" in row]
    return [
        {name: value for name, value in row.items() if name in kept or name.startswith(OURS)}
        for row in rows
    ]


def _data(task: Task, vlm: VLM, *, with_boxes: bool):
    samples = interp.load_samples(
        task.data, split=task.split, limit=task.n_samples, seed=task.sample_seed
    )
    samples = usable(samples, lambda s: against_question(s, vlm.processor, with_boxes=with_boxes))
    return questions(samples, PROMPTS[vlm.prompt])


if __name__ == "__main__":
    with in_one_line():
        main(*given(Policy, Task, Guide, GRPOConfig))
