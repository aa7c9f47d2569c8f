"""Supervised fine-tuning on samples, over TRL's SFTTrainer.

    python -m train.new_model runs/new                   # only for a model from nothing
    python -m train.vision runs/new --out runs/seeing    # likewise
    python -m train.sft --config train/configs/tiny-sft.yaml
    python -m train.sft --config train/configs/tiny-sft-2.yaml   # goes on from the first

Every key of TRL's SFTConfig can stand in the YAML file or on the command line. An interrupted run
goes on from its last checkpoint when the same command is given again. Training starts only if the
extractor passes its oracles on this very model (`interp.validate`).
"""

from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoProcessor
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer

from interp.data import digits
from train.certified import Certified
from train.options import parsed
from train.scenes import Mix, rows


@dataclass
class Data:
    """What to train, and on what."""

    model_name_or_path: str = field(metadata={"help": "hub id or folder"})
    n_samples: int = field(metadata={"help": "number of training scenes, each seen once per epoch"})
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
    scene_seed: int = field(default=1, metadata={"help": "seed of the scenes"})
    certify: bool = field(
        default=True,
        metadata={"help": "refuse to train a model on which the extractor fails its oracles"},
    )


def main(data: Data, config: SFTConfig) -> None:
    """Trains from the last checkpoint in the output folder, if any; saves model and processor."""
    mix = Mix(
        data.n_samples, data.scene_seed, tuple(data.stages), tuple(data.families), data.reading
    )
    out = Path(config.output_dir)
    last = get_last_checkpoint(out) if out.is_dir() else None
    # The Trainer alone would resume with the first weights and no word: a checkpoint's weights have
    # the hub's names, the model in memory has others, and only from_pretrained translates them.
    trainer = SFTTrainer(
        model=last or data.model_name_or_path,
        args=config,
        train_dataset=rows(mix),
        processing_class=AutoProcessor.from_pretrained(data.model_name_or_path),
        callbacks=[Certified()] if data.certify else None,
    )
    trainer.train(resume_from_checkpoint=last)
    trainer.save_model(out / "final")
    trainer.processing_class.save_pretrained(out / "final")


if __name__ == "__main__":
    main(*parsed(Data, SFTConfig))
