"""Pre-training of the vision tower: which digit of which colour covers each visual token?

    python -m train.tiny.vision runs/new --out runs/seeing

Vision-language models start from a trained vision tower; this is tiny's. Linear heads on the
merged tokens name the digit that covers most of each cell and its colour, or the background.
Without this stage fine-tuning learns colours and places and after 1,500 steps not one digit: the
loss of a single answer token is too thin a thread for a tower of random weights. And without the
colours the tower forgets them, and fine-tuning does not bring them back. The heads are thrown away.
"""

import argparse
import json
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import AutoModelForImageTextToText, AutoProcessor, get_cosine_schedule_with_warmup

from interp.data.boxes import box_overlap
from interp.data.digits import scenes as digits
from interp.data.digits.drawing import COLORS
from interp.model import families
from interp.model.parts import Parts

CLASSES = {"digit": 10, "color": len(COLORS)}  # and one more each, the background
COVERED = 0.25  # least share of a cell inside a digit's box for the cell to count as that digit


class Cells(Dataset):
    """Scenes as patches, their grid, and a digit and a colour per merged token."""

    def __init__(self, processor, split: str, n_samples: int, seed: int):
        self.processor, self.split, self.n_samples, self.seed = processor, split, n_samples, seed

    def __len__(self):
        return self.n_samples

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """(patches, grid, labels (token, 2)) of one scene."""
        sample = digits.make_sample(
            self.split, index, seed=self.seed, families=("read",), with_twin=False
        )
        features = self.processor.image_processor(images=[sample.image], return_tensors="pt")
        _, height, width = features["image_grid_thw"][0].tolist()
        labels = torch.tensor(list(CLASSES.values())).repeat(height // 2, width // 2, 1)
        best = torch.full(labels.shape[:2], COVERED, dtype=torch.float64)
        for box, named in zip(sample.boxes, sample.answer.split(", "), strict=True):
            color, digit = named.split(" ")
            overlap = torch.from_numpy(box_overlap(box.reshape(1, 4), *best.shape))
            labels[overlap > best] = torch.tensor([int(digit), list(COLORS).index(color)])
            best = torch.maximum(best, overlap)
        return features["pixel_values"], features["image_grid_thw"], labels.reshape(-1, 2)


def loader(processor, split: str, n_samples: int, *, batch_size: int, seed: int) -> DataLoader:
    """Batches of scenes, in order."""
    return DataLoader(
        Cells(processor, split, n_samples, seed),
        batch_size=batch_size,
        num_workers=1,
        collate_fn=lambda rows: tuple(torch.cat(column) for column in zip(*rows, strict=True)),
    )


class Heads(nn.Module):
    """One linear head per question on normalised visual tokens."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.ModuleList(nn.Linear(width, n + 1) for n in CLASSES.values())

    def forward(self, visual: Tensor) -> list[Tensor]:
        """Logits over digits and over colours, (token, class) each."""
        normed = self.norm(visual)
        return [linear(normed) for linear in self.linear]

    def loss(self, visual: Tensor, labels: Tensor) -> Tensor:
        """Sum of the cross entropies of both questions."""
        logits = self(visual)
        return sum(nn.functional.cross_entropy(x, labels[:, k]) for k, x in enumerate(logits))


def levels(parts: Parts, patches: Tensor, grids: Tensor) -> tuple[Tensor, ...]:
    """Visual tokens of a batch, one after the other: embeddings, then DeepStack's levels."""
    content = parts.embed_images(pixel_values=patches, image_grid_thw=grids)
    return content.chunk(1 + parts.n_injected, dim=-1)


def accuracy(parts: Parts, heads: Heads, batches) -> dict[str, float]:
    """Share of the cells covered by a digit whose digit, and whose colour, is named."""
    right, n_cells = dict.fromkeys(CLASSES, 0), 0
    with torch.no_grad():
        for patches, grids, labels in batches:
            logits = heads(levels(parts, patches, grids)[0])
            is_digit = labels[:, 0] != CLASSES["digit"]
            n_cells += int(is_digit.sum())
            for k, (name, class_logits) in enumerate(zip(CLASSES, logits, strict=True)):
                right[name] += int((class_logits.argmax(dim=-1) == labels[:, k])[is_digit].sum())
    return {name: count / n_cells for name, count in right.items()}


@dataclass(frozen=True)
class Pretraining:
    """How long, how fast and from which seed a tower is trained."""

    steps: int = 3000
    batch_size: int = 48
    lr: float = 1e-3
    seed: int = 0


def train(parts: Parts, processor, options: Pretraining) -> dict[str, dict]:
    """Trains a model's tower in place, with heads on what it gives to each layer.

    Returns accuracies of its embeddings, on cells of held-out and of training images.
    """
    torch.manual_seed(options.seed)
    tower = parts.vision_tower
    heads = nn.ModuleList(
        Heads(parts.final_norm.weight.shape[0]) for _ in range(1 + parts.n_injected)
    )
    weights = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=options.lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, 100, options.steps)
    size = options.batch_size
    batches = loader(processor, "train", options.steps * size, batch_size=size, seed=options.seed)
    for step, (patches, grids, labels) in enumerate(batches, start=1):
        seen = levels(parts, patches, grids)
        loss = sum(head.loss(one, labels) for head, one in zip(heads, seen, strict=True))
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    accuracies = {}
    for split in digits.SPLITS:
        check = loader(processor, split, 200, batch_size=50, seed=options.seed + 1)
        tower.eval()
        accuracies[split] = accuracy(parts, heads.eval()[0], check)
    return accuracies


def main() -> None:
    """Trains the tower of the model in a folder and saves model and processor in another."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, help="folder of a model")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    for one in fields(Pretraining):
        name = f"--{one.name.replace('_', '-')}"
        parser.add_argument(name, type=one.type, default=one.default)
    given = vars(parser.parse_args())
    folder, out = given.pop("model"), given.pop("out")
    model = AutoModelForImageTextToText.from_pretrained(folder).train()
    processor = AutoProcessor.from_pretrained(folder)
    accuracies = train(families.parts(model), processor, Pretraining(**given))
    model.save_pretrained(out)
    processor.save_pretrained(out)
    (out / "vision.json").write_text(json.dumps({"cell_accuracy": accuracies}))
    print(f"{out}: cells named, {accuracies}")


if __name__ == "__main__":
    main()
