"""The completions of one forward of the trainer, as auxiliary losses read them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.capture.heard import Heard
from interp.data.boxes import box_overlap
from interp.data.sample import Sample
from interp.inputs.tokens import Tokens
from interp.model.parts import Parts
from train.rewards.placebos import moved


@dataclass(frozen=True)
class Text:
    """One completion behind its prompt."""

    sample: Sample
    tokens: Tokens
    """Those of prompt and completion, without padding."""
    n_prompt: int
    boxes: Float[np.ndarray, "box 4"] | None
    """The evidence, or what stands in for it; None where there is none."""

    @property
    def n_written(self) -> int:
        """Tokens of the completion; 0 where the trainer masks it, as cut off."""
        return len(self.tokens.ids) - self.n_prompt

    @property
    def overlap(self) -> Float[np.ndarray, " visual"]:
        """Share of each visual token's cell inside the boxes."""
        tokens = self.tokens
        at = tokens.row[tokens.is_visual], tokens.column[tokens.is_visual]
        return box_overlap(self.boxes, *self.grid)[at]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the image's cells.

        Raises:
            ValueError: several images, or views of one, whose cells are not one grid.
        """
        if len(self.tokens.grid) != 2 or (self.tokens.row[self.tokens.is_visual] < 0).any():
            raise ValueError(
                f"{self.sample.id}: expected one image on one grid of cells, got grids "
                f"{self.tokens.grid}; a loss on its cells needs a family that does not cut tiles"
            )
        return self.tokens.grid

    def moved(self) -> "Text":
        """The same with the union of its boxes at another place, as `Rolled` has it; None: none."""
        if self.boxes is None:
            return self
        return replace(self, boxes=moved(self.boxes, self.grid, self.sample.id))

    def rows_of(self, role: str) -> list[int]:
        """Positions of the tokens of a role in the completion."""
        roles = self.tokens.role
        return [k for k in range(self.n_prompt, len(roles)) if roles[k] == role]


@dataclass(frozen=True)
class MicroBatch:
    """Completions side by side, padded on both sides."""

    texts: list[Text]
    ids: Int[Tensor, "sequence token"]
    is_visible: Bool[Tensor, "sequence token"]
    n_left: list[int]
    """Padding in front of each."""
    is_paid: Bool[Tensor, " sequence"]
    """Passed the gate, and has boxes."""


class Loss(Protocol):
    """A term per completion, differentiated through the policy's own forward."""

    name: str
    weight: float
    tau: float
    """Least accuracy of a completion that counts; None does not pass."""
    is_sham: bool
    """Whether it is given the boxes at another place."""
    per_gated: bool
    """Mean over the completions that passed; otherwise over all."""

    def layers(self, parts: Parts) -> Iterable[int]:
        """The layers it listens to."""
        ...

    def __call__(
        self, heard: Heard, batch: MicroBatch, log: Callable[[str, float], None]
    ) -> Float[Tensor, " sequence"]:
        """Values of the completions, 0 of those that did not pass."""
        ...


def spread_rows(rows: list[int], most: int) -> list[int]:
    """At most so many of some rows, evenly spaced, the first and the last among them."""
    if len(rows) <= most:
        return rows
    return [rows[k] for k in np.unique(np.linspace(0, len(rows) - 1, most).round().astype(int))]
