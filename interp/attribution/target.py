"""One target of one sample, its forward and its patches: every method begins with it.

All methods explain the same number, the target's logit in the centered gauge: raw logits hold what
all tokens have in common, and maps of the two can differ as much as methods do.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from interp.algebra.readout import gauge_rows
from interp.capture.prefill import Prefill, prefill
from interp.data.sample import Sample
from interp.extract.question import Query, ask
from interp.inputs.completions import Completion
from interp.inputs.prompts import with_images
from interp.maps.grid import arranged
from interp.maps.map import Map
from interp.maps.named import Wanted, target_index
from interp.model.families import base_model
from interp.model.parts import Parts
from interp.model.vlm import VLM


@dataclass(frozen=True)
class Asked:
    """One target: its row predicts its token."""

    query: Query
    context: Prefill
    index: int
    """The target's place among the sample's targets."""

    @property
    def parts(self) -> Parts:
        """The model's parts."""
        return self.query.parts

    @property
    def row(self) -> int:
        """Row of the sequence that predicts the target."""
        return int(self.query.rows[0])

    @property
    def target(self) -> int:
        """Token id."""
        return int(self.query.targets[0])

    @property
    def visual(self) -> Int[Tensor, " patch"]:
        """Rows of the visual tokens."""
        return self.query.is_visual.nonzero()[:, 0]

    @property
    def reader(self) -> Float[Tensor, " d_model"]:
        """The target's row of the output embedding above the vocabulary's mean row."""
        return gauge_rows(self.parts.output_embedding, self.query.targets, "centered")[0]

    def logit(self, content: Float[Tensor, "token content"]) -> Float[Tensor, ""]:
        """The target's logit with this content, from the language model's forward."""
        arguments = self.context.given | self.parts.entering(content[None]) | {"use_cache": False}
        hidden = self.parts.run(arguments).last_hidden_state[0, self.row]
        return hidden.to(self.reader.dtype) @ self.reader

    def logits(self, images: Mapping[str, Tensor], n: int = 1) -> Float[Tensor, " image"]:
        """The target's logit with each of `n` images on the sample's grid, from whole forwards.

        Args:
            images: what a processor makes of them, one to a sequence (`image_inputs`).
            n: how many.
        """
        batch = with_images(self.query.batch, images, n)
        hidden = base_model(self.query.model).model(**batch, use_cache=False).last_hidden_state
        return hidden[:, self.row].to(self.reader.dtype) @ self.reader

    def on_grid(self, values: Float[Tensor, " patch"], name: str, **attributes) -> Map:
        """Values of the visual tokens by patch row and column of the finest view."""
        tokens, visual = self.query.tokens, self.visual.cpu().numpy()
        seen = (values.detach().double().cpu().numpy(), tokens.view[visual])
        grid = arranged(*seen, tokens.row[visual], tokens.column[visual])
        return self.as_map(grid, name, **attributes)

    def as_map(self, grid: Float[np.ndarray, "row column"], name: str, **attributes) -> Map:
        """A map of the target on the grid of the image's finest view."""
        coords = {"row": np.arange(grid.shape[0]), "column": np.arange(grid.shape[1])}
        return Map(
            grid,
            dims=("row", "column"),
            coords=coords,
            name="map",
            attrs={"method": name, "target": self.query.target_text[0], **attributes},
        )


def index_of(query: Query, target: Wanted) -> int:
    """The target's place among the sample's, which may be said as for `interp.maps.token_map`.

    Raises:
        ValueError: no such target, or one that means several.
    """
    roles = [role for role, _ in query.places]
    named = {"target_role": ("target", roles), "target_token": ("target", list(query.target_text))}
    try:
        return target_index(xr.Dataset(coords=named), target)
    except ValueError as error:
        raise ValueError(f"{query.attributes['sample']}: {error}") from None


def ask_one(
    vlm: VLM, sample: Sample, target: Wanted, completion: Completion | None = None
) -> Asked:
    """The target's question with its prefill.

    Args:
        vlm: the model.
        sample: with one image.
        target: its index, counted from the end where it is negative; a role, for its first target;
            or a token that stands once.
        completion: the text to explain; the sample's own by default.

    Raises:
        ValueError: no such target; several images, or none; what `interp.extract.ledger` raises.
    """
    if len(sample.images) != 1:
        raise ValueError(
            f"{sample.id}: expected one image, got {len(sample.images)}; interp.extract.maps has "
            "maps of several"
        )
    full_query = ask(vlm, sample, completion=completion)
    index = index_of(full_query, target)
    options = {
        "positions": [int(full_query.rows[index])],
        "targets": [int(full_query.targets[index])],
    }
    query = ask(vlm, sample, completion=completion, **options)
    return Asked(query, prefill(query.model, query.batch, query.rows), index)
