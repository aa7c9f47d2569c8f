"""EASE (our reading; METHODS.md 5): attention of response rows, supervised with the boxes.

    L = L_GRPO + λ · mean over completions with accuracy ≥ τ of mean_t KL(ā_t ‖ q)

ā_t is the attention of the row that predicts y_t in layer ⌊2L/3⌋, heads averaged, renormalised over
visual tokens; q a mixture of Gaussians on the boxes and a uniform share. Its equations are not
public: what is read otherwise has a name and is an option. We claim no reproduction.
"""

from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from interp.capture.heard import Heard
from interp.model.parts import Parts
from train.losses.micro_batch import MicroBatch, Text, spread_rows

HEADS = ("mean", "each")
DIRECTIONS = ("attention", "target")
MIXTURES = ("equal", "area")
FLOOR = 1e-12


@dataclass(frozen=True)
class Ease:
    """KL between attention on the image and Gaussians on the boxes, in one layer.

    Args:
        weight: λ.
        tau: least accuracy of a completion that counts.
        layer: which, ⌊2L/3⌋ by default.
        heads: "mean" averages them and renormalises over the image; "each" the other way round.
        direction: "attention" for KL(ā ‖ q), "target" for KL(q ‖ ā).
        mixture: "equal" weighs all boxes alike, "area" by their areas.
        per_gated: mean over the completions that passed; otherwise over all of them.
        background: the uniform share of q.
        max_rows: rows of a completion, evenly spaced.
        is_sham: the boxes stand elsewhere: the placebo.

    Raises:
        ValueError: an option by another name.
    """

    weight: float = 0.001
    tau: float = 0.5
    layer: int | None = None
    heads: str = "mean"
    direction: str = "attention"
    mixture: str = "equal"
    per_gated: bool = True
    background: float = 0.1
    max_rows: int = 64
    is_sham: bool = False
    name: str = "ease"

    def __post_init__(self):
        for value, allowed in (
            (self.heads, HEADS),
            (self.direction, DIRECTIONS),
            (self.mixture, MIXTURES),
        ):
            if value not in allowed:
                raise ValueError(f"expected one of {allowed}, got {value!r}")
        if not 0 < self.background <= 1:
            raise ValueError(
                f"expected a uniform share in (0, 1], got {self.background}; without one the KL of "
                "attention outside the boxes is infinite"
            )

    def layers(self, parts: Parts) -> list[int]:
        """The one layer; raises ValueError for one that the model does not have."""
        layer = 2 * parts.n_layers // 3 if self.layer is None else self.layer
        if not 0 <= layer < parts.n_layers:
            raise ValueError(f"expected a layer in 0..{parts.n_layers - 1}, got {layer}")
        return [layer]

    def __call__(self, heard: Heard, batch: MicroBatch, log) -> Float[Tensor, " sequence"]:
        """mean_t KL of each completion that passed, else 0; logs KL and attention on the image."""
        (layer,) = self.layers(heard.parts)
        chosen = [
            spread_rows(list(range(one.n_prompt - 1, len(one.tokens.ids) - 1)), self.max_rows)
            for one in batch.texts
        ]
        rows, is_row = _padded(batch, chosen)
        attention = heard.attention(layer, rows, batch.is_visible)
        values, shares = [], []
        for s, one in enumerate(batch.texts):
            if not one.n_written:
                values.append(attention.new_zeros(()))
                continue
            visual = torch.from_numpy(np.flatnonzero(one.tokens.is_visual)) + batch.n_left[s]
            on_image = attention[s][..., visual.to(rows.device)]  # (row, head, visual)
            shares.append(float(on_image.detach().sum(dim=-1).mean(dim=1)[is_row[s]].mean()))
            if not batch.is_paid[s]:
                values.append(attention.new_zeros(()))
                continue
            wanted = torch.from_numpy(target(one, self.background, self.mixture)).to(on_image)
            divergence = self._divergence(on_image, wanted)
            values.append(divergence[is_row[s]].mean())
        all_paid = zip(values, batch.is_paid, strict=True)
        paid = [float(one.detach()) for one, passed in all_paid if passed]
        if paid:
            log("ease/kl", float(np.mean(paid)))
        if shares:
            log("ease/visual_attention", float(np.mean(shares)))
        return torch.stack(values)

    def _divergence(
        self, on_image: Float[Tensor, "row head visual"], wanted: Float[Tensor, " visual"]
    ) -> Float[Tensor, " row"]:
        if self.heads == "mean":
            mean = on_image.mean(dim=1)
            paid = mean / mean.sum(dim=-1, keepdim=True).clamp_min(FLOOR)
        else:
            paid = (on_image / on_image.sum(dim=-1, keepdim=True).clamp_min(FLOOR)).mean(dim=1)
        logs = paid.clamp_min(FLOOR).log() - wanted.log()
        return (paid * logs).sum(-1) if self.direction == "attention" else -(wanted * logs).sum(-1)


def target(text: Text, background: float, mixture: str) -> Float[np.ndarray, " visual"]:
    """q over the visual tokens, which sums to 1 (METHODS.md 5).

    Each box has a Gaussian at its centre, a quarter of a side wide and half a cell at least.
    """
    rows, columns = text.grid
    y, x = np.meshgrid(
        (np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij"
    )
    boxes = text.boxes
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    weights = np.ones(len(boxes)) / len(boxes) if mixture == "equal" else areas / areas.sum()
    total = np.zeros((rows, columns))
    for (x0, y0, x1, y1), weight in zip(boxes, weights, strict=True):
        width, height = max((x1 - x0) / 4, 0.5 / columns), max((y1 - y0) / 4, 0.5 / rows)
        bell = np.exp(
            -0.5 * (((x - (x0 + x1) / 2) / width) ** 2 + ((y - (y0 + y1) / 2) / height) ** 2)
        )
        total += weight * bell / bell.sum()
    cells = (1 - background) * total + background / total.size
    tokens = text.tokens
    return cells[tokens.row[tokens.is_visual], tokens.column[tokens.is_visual]]


def _padded(batch: MicroBatch, chosen: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Rows of every sequence, counted with its padding, as many for each; and which are real."""
    most, device = max(1, *map(len, chosen)), batch.ids.device
    rows = torch.tensor(
        [
            [left + k for k in own] + [left + one.n_prompt - 1] * (most - len(own))
            for own, left, one in zip(chosen, batch.n_left, batch.texts, strict=True)
        ],
        device=device,
    )
    lengths = torch.tensor([len(own) for own in chosen], device=device)
    return rows, torch.arange(most, device=device) < rearrange(lengths, "s -> s 1")
