"""Supervised fine-tuning on samples, over TRL's SFTTrainer.

    python -m train.tiny.new_model runs/new                   # only for a model from nothing
    python -m train.tiny.vision runs/new --out runs/seeing    # likewise
    python -m train.sft --config train/configs/tiny-sft.yaml
    python -m train.sft --config train/configs/tiny-sft-2.yaml   # goes on from the first

Every key of TRL's SFTConfig can stand in the YAML file or on the command line. An interrupted run
goes on from its last checkpoint when the same command is given again. Training starts only if the
extractor passes its oracles on this very model (`interp.validate`).
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer

import interp
from interp.data.digits import scenes as digits
from interp.data.sample import Sample
from interp.model.vlm import PROMPTS, VLM
from train.certified import Certified
from train.focus import FOCUS, focus_id
from train.losses.anchor import AnchoredTrainer, WithBoxes
from train.options import given
from train.policy import Policy, load_policy, lora, name_adapter
from train.refusals import in_one_line
from train.rows import texts
from train.tiny.closed_paths import PATHS, ClosedPath
from train.tiny.mix import Mix
from train.usable import Whole, against_text, usable


@dataclass
class Data:
    """On what to train."""

    n_samples: int = field(metadata={"help": "number of training samples, seen once per epoch"})
    data: str = field(default="digits", metadata={"help": "as for interp.load_samples"})
    split: str = field(default="train", metadata={"help": "its split, where it is not digits"})
    stages: list[float] = field(
        default_factory=lambda: [0.0, 0.0, 0.0],
        metadata={"help": "shares of the samples at which scenes get up to 2, 3 and 4 digits"},
    )
    families: list[str] = field(
        default_factory=lambda: list(digits.QUESTIONS),
        metadata={"help": "families of questions, which take turns; repeat a name to weight it"},
    )
    reading: float = field(
        default=0.0,
        metadata={"help": "share of the rows of which every second only asks to read the digits"},
    )
    careless: float = field(
        default=0.0,
        metadata={"help": "share of the scenes with a text made at first glance, often wrong"},
    )
    thinking: str = field(
        default="",
        metadata={"help": "what all texts of digits say before the answer, in place of their own"},
    )
    closed_path: str = field(
        default="",
        metadata={"help": "image or ffn: what answer rows are kept from (see closed_paths.py)"},
    )
    focus_weight: float = field(
        default=0.0, metadata={"help": "λ of the anchor's loss on models of train.focus"}
    )
    focus_layers: list[int] = field(
        default_factory=list, metadata={"help": "whose attention; ⌊2L/3⌋ by default"}
    )
    focus_token: str = field(default=FOCUS, metadata={"help": "as train.focus has put it there"})
    scene_seed: int = field(default=1, metadata={"help": "of the scenes, or of the rows' order"})
    certify: bool = field(
        default=True,
        metadata={"help": "refuse to train a model on which the extractor fails its oracles"},
    )

    def __post_init__(self):
        if self.thinking and self.data != "digits":
            raise ValueError(f"expected thinking with the data digits alone, got {self.data!r}")
        if self.closed_path not in ("", *PATHS):
            raise ValueError(f"expected closed_path of {PATHS}, got {self.closed_path!r}")


def main(policy: Policy, data: Data, config: SFTConfig) -> None:
    """Trains from the last checkpoint in the output folder, if any; saves model and processor."""
    config.remove_unused_columns = False  # rows are made of their index, which no model reads
    out = Path(config.output_dir)
    last = get_last_checkpoint(out) if out.is_dir() else None
    # The Trainer alone would resume with the first weights and no word: a checkpoint's weights have
    # the hub's names, the model in memory has others, and only from_pretrained translates them.
    vlm = load_policy(policy, last if policy.lora_r == 0 else None)
    trainer = _trainer(data, vlm)(
        model=vlm.model,
        args=config,
        train_dataset=_rows(data, vlm, config.max_length),
        processing_class=vlm.processor,
        callbacks=_callbacks(data, vlm),
        peft_config=lora(policy),
    )
    trainer.data_collator = Whole(trainer.data_collator)
    if data.focus_weight:
        system = PROMPTS[vlm.prompt]
        trainer.data_collator = WithBoxes(trainer.data_collator, vlm.processor, system)
    trainer.train(resume_from_checkpoint=last)
    trainer.save_model(out / "final")
    trainer.processing_class.save_pretrained(out / "final")
    if policy.lora_r and trainer.is_world_process_zero():
        name_adapter(out / "final", vlm, policy)


def _trainer(data: Data, vlm: VLM):
    """TRL's own trainer, or the one with an anchor."""
    if not data.focus_weight:
        return SFTTrainer
    focus = focus_id(vlm.processor, data.focus_token)
    options = {"weight": data.focus_weight, "layers": data.focus_layers}
    return partial(AnchoredTrainer, focus=focus, **options)


def _callbacks(data: Data, vlm: VLM) -> list:
    """They change and check the model when training begins, in this order."""
    closing = [ClosedPath(data.closed_path)] if data.closed_path else []
    return [*closing, *([Certified(vlm.prompt)] if data.certify else [])]


def _rows(data: Data, vlm: VLM, max_length: int | None):
    """The scenes of a curriculum, made when they are asked for, or samples from files."""
    system = PROMPTS[vlm.prompt]
    if data.data == "digits":
        stages, families = tuple(data.stages), tuple(data.families)
        order = stages, families, data.reading, data.careless, data.thinking
        mix = Mix(data.n_samples, data.scene_seed, *order)
        return texts(data.n_samples, mix.scene, system, with_sample=bool(data.focus_weight))
    samples = interp.load_samples(
        data.data, split=data.split, limit=data.n_samples, seed=data.scene_seed
    )
    samples = usable(samples, lambda s: _against(s, data, vlm, max_length))
    has_anchor = bool(data.focus_weight)
    return texts(len(samples), samples.__getitem__, system, with_sample=has_anchor)


def _against(sample: Sample, data: Data, vlm: VLM, max_length: int | None) -> str | None:
    """Why a sample can't be trained on; None if it can."""
    if data.focus_weight and sample.boxes is None:
        return "no boxes"
    return against_text(sample, vlm.processor, PROMPTS[vlm.prompt], max_length)


if __name__ == "__main__":
    with in_one_line():
        main(*given(Policy, Data, SFTConfig))
