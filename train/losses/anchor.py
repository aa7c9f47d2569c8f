"""Faithful-MR1's anchoring (our reading; METHODS.md 5): the attention of <Focus>, on the boxes.

    L = L_CE + λ · mean over texts of −log Σ_v w_v ā_F(v)

ā_F is the attention of the row of <Focus>, averaged over named layers and all heads, renormalised
over visual tokens; w_v the share of a cell inside the boxes.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from trl import SFTTrainer

from interp.capture.heard import Heard, hearing
from interp.data.sample import Sample
from interp.inputs import prompts as inputs
from interp.inputs.tokens import token_table
from interp.model import families

LEAST = 1e-6


class WithBoxes:
    """A collator that knows which visual tokens of each text lie on its sample's boxes.

    Args:
        collator: of the texts; rows have their `sample` too.
        processor, system: as the texts are made.
    """

    def __init__(self, collator, processor, system: str | None):
        self.collator, self.processor, self.system = collator, processor, system

    def __call__(self, examples: list[dict]) -> dict:
        """The batch, with `overlap`: for each text a weight of every visual token."""
        samples = [one["sample"] for one in examples]
        rest = [{name: v for name, v in one.items() if name != "sample"} for one in examples]
        return {**self.collator(rest), "overlap": [self._overlap(one) for one in samples]}

    def _overlap(self, sample: Sample) -> Float[Tensor, " visual"]:
        batch = inputs.prompts(self.processor, [sample], self.system)
        tokens = token_table(self.processor, batch, sample.boxes, None, self.system)
        return torch.from_numpy(tokens.box_overlap[tokens.is_visual]).float()


class AnchoredTrainer(SFTTrainer):
    """SFT with the attention of one token supervised.

    Args:
        focus: its id, which every text has.
        weight: λ.
        layers: whose attention; ⌊2L/3⌋ by default.
        args, given: as for SFTTrainer.

    Raises:
        ValueError: a layer that the model does not have.
    """

    def __init__(self, *args, focus: int, weight: float, layers: Sequence[int] = (), **given):
        super().__init__(*args, **given)
        self.focus, self.weight = focus, weight
        n_layers = families.parts(self.accelerator.unwrap_model(self.model)).n_layers
        self.anchored = list(layers) or [2 * n_layers // 3]
        if not all(0 <= layer < n_layers for layer in self.anchored):
            raise ValueError(f"expected layers in 0..{n_layers - 1}, got {self.anchored}")

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Cross-entropy and the anchor's loss."""
        overlap = inputs.pop("overlap")  # the model does not know it
        inner = self.accelerator.unwrap_model(model)
        with hearing(inner, self.anchored) as heard:
            found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, outputs = found if return_outputs else (found, None)
        anchors = anchor_losses(heard, self.anchored, self.focus, inputs, overlap)
        self._metrics["train" if self.model.training else "eval"]["focus/on_boxes"].append(
            float(np.exp(-anchors.detach().cpu().numpy()).mean())
        )
        # A mean over items of all forwards of a step has no division of its own behind it.
        steps = self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
        total = loss + self.weight * anchors.mean() / (steps if self.model.training else 1)
        return (total, outputs) if return_outputs else total


def anchor_losses(
    heard: Heard, layers: list[int], focus: int, batch, overlap: list[Tensor]
) -> Float[Tensor, " sequence"]:
    """−log of the share of the anchor's attention on the boxes, of each text.

    Args:
        heard: the forward.
        layers: whose attention is averaged.
        focus: the anchor's id.
        batch: input_ids and attention_mask of the forward.
        overlap: weights of each text's visual tokens.

    Raises:
        ValueError: a text without the anchor.
    """
    ids, is_visible = batch["input_ids"], batch["attention_mask"].bool()
    is_focus = ids == focus
    if not is_focus.any(dim=1).all():
        raise ValueError(
            "expected the anchor's token in every text, got one without it; make the model with "
            "python -m train.focus"
        )
    # The last one: earlier turns of an assistant have theirs.
    rows = ids.shape[1] - 1 - is_focus.flip(1).int().argmax(dim=1, keepdim=True)
    rows_by_layer = [heard.attention(layer, rows, is_visible)[:, 0].mean(dim=1) for layer in layers]
    attention = torch.stack(rows_by_layer).mean(dim=0)
    losses = []
    for row, is_image, weights in zip(
        attention, ids == heard.parts.image_token_id, overlap, strict=True
    ):
        on_image = row[is_image]
        share = on_image @ weights.to(on_image) / on_image.sum().clamp_min(LEAST)
        losses.append(-share.clamp_min(LEAST).log())
    return torch.stack(losses)
