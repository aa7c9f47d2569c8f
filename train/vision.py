"""Pre-training of the vision tower: which digit covers each visual token?

    python -m train.vision runs/new --out runs/seeing

Vision-language models start from a trained vision tower; this is tiny's. A linear head on the
merged tokens names the digit that covers most of each cell, or the background. Without this stage
fine-tuning learns colours and places and after 1,500 steps not one digit: the loss of a single
answer token is too thin a thread for a tower of random weights. The head is thrown away.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import AutoModelForImageTextToText, AutoProcessor, get_cosine_schedule_with_warmup

from interp.data import digits
from interp.inputs import box_overlap

BACKGROUND = 10
COVERED = 0.25  # least share of a cell inside a digit's box for the cell to count as that digit


class Cells(Dataset):
    """Scenes as patches, their grid, and a label per merged token."""

    def __init__(self, processor, split: str, n_samples: int, seed: int):
        self.processor, self.split, self.n_samples, self.seed = processor, split, n_samples, seed

    def __len__(self):
        return self.n_samples

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """(patches, grid, labels) of one scene."""
        sample = digits.make_sample(
            self.split, index, seed=self.seed, families=("read",), with_twin=False
        )
        made = self.processor.image_processor(images=[sample.image], return_tensors="pt")
        _, height, width = made["image_grid_thw"][0].tolist()
        labels = torch.full((height // 2, width // 2), BACKGROUND)
        best = torch.full(labels.shape, COVERED, dtype=torch.float64)
        for box, label in zip(sample.boxes, sample.answer.split(", "), strict=True):
            overlap = torch.from_numpy(box_overlap(box.reshape(1, 4), *labels.shape))
            labels[overlap > best] = int(label)
            best = torch.maximum(best, overlap)
        return made["pixel_values"], made["image_grid_thw"], labels.flatten()


def loader(processor, split: str, n_samples: int, *, batch_size: int, seed: int) -> DataLoader:
    """Batches of scenes, in order."""
    return DataLoader(
        Cells(processor, split, n_samples, seed),
        batch_size=batch_size,
        num_workers=1,
        collate_fn=lambda rows: tuple(torch.cat(column) for column in zip(*rows, strict=True)),
    )


def tokens(tower: nn.Module, patches: Tensor, grids: Tensor) -> Tensor:
    """The merged visual tokens of a batch, one after the other."""
    merged = tower(patches, grid_thw=grids).pooler_output
    return torch.cat(tuple(merged)) if isinstance(merged, (tuple, list)) else merged


def accuracy(tower: nn.Module, head: nn.Module, batches) -> float:
    """Share of the cells covered by a digit whose digit is named."""
    right, n_cells = 0, 0
    with torch.no_grad():
        for patches, grids, labels in batches:
            is_digit = labels != BACKGROUND
            named = head(tokens(tower, patches, grids)).argmax(dim=-1)
            right += int((named == labels)[is_digit].sum())
            n_cells += int(is_digit.sum())
    return right / n_cells


def train(tower: nn.Module, processor, options: argparse.Namespace) -> dict[str, float]:
    """Trains the tower in place; returns accuracies on cells of held-out and of training images."""
    torch.manual_seed(options.seed)
    head = nn.Sequential(nn.LayerNorm(tower.config.out_hidden_size),
                         nn.Linear(tower.config.out_hidden_size, BACKGROUND + 1))  # fmt: skip
    weights = [*tower.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=options.lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, 100, options.steps)
    size = options.batch_size
    batches = loader(processor, "train", options.steps * size, batch_size=size, seed=options.seed)
    for step, (patches, grids, labels) in enumerate(batches, start=1):
        loss = nn.functional.cross_entropy(head(tokens(tower, patches, grids)), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    found = {}
    for split in digits.SPLITS:
        check = loader(processor, split, 200, batch_size=50, seed=options.seed + 1)
        found[split] = accuracy(tower.eval(), head.eval(), check)
    return found


def main() -> None:
    """Trains the tower of the model in a folder and saves model and processor in another."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, help="folder of a model")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=48)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model = AutoModelForImageTextToText.from_pretrained(options.model).train()
    processor = AutoProcessor.from_pretrained(options.model)
    found = train(model.model.visual, processor, options)
    model.save_pretrained(options.out)
    processor.save_pretrained(options.out)
    (options.out / "vision.json").write_text(json.dumps({"cell_accuracy": found}))
    print(f"{options.out}: digit cells named, {found}")


if __name__ == "__main__":
    main()
