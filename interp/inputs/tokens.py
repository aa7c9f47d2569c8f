"""The token table: role, image, patch and overlap with the evidence, by row of `input_ids`."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from interp.data.boxes import box_overlap, evidence_cells
from interp.inputs.roles import roles_of
from interp.inputs.spelling import steering_ids, token_bytes
from interp.inputs.views import Seen, View, views, visual_token_id


@dataclass(frozen=True)
class Tokens:
    """A table with one entry per token position of a sequence."""

    ids: Int[np.ndarray, " token"]
    text: tuple[str, ...]
    role: tuple[str, ...]
    """One of `interp.vocabulary.ROLES`."""
    image: Int[np.ndarray, " token"]
    """Number of the image, or -1 where not visual."""
    view: Int[np.ndarray, " token"]
    """Which of its views: 0 the finest, 1 the small one beside it; -1 where not visual."""
    row: Int[np.ndarray, " token"]
    """Row of the patch in its view, or -1 where a token stands for no pixels; so for column."""
    column: Int[np.ndarray, " token"]
    box_overlap: Float[np.ndarray, " token"]
    """Share of the patch's area inside the union of the evidence boxes."""
    is_evidence: Bool[np.ndarray, " token"]
    """At least half inside the union, or the patch with the largest share of one of the boxes."""
    extent: tuple[float, float, float, float] = (0.0, 1.0, 0.0, 1.0)
    """Where the finest view of a single image lies on it, as `View` has it."""

    @property
    def is_visual(self) -> Bool[np.ndarray, " token"]:
        """Which rows hold visual tokens."""
        return self.image >= 0

    @property
    def grid(self) -> tuple[int, ...]:
        """Rows and columns of every view of every image, in turn."""
        found = []
        for image, view in sorted({*zip(self.image, self.view, strict=True)} - {(-1, -1)}):
            is_here = (self.image == image) & (self.view == view)
            found += [int(self.row[is_here].max()) + 1, int(self.column[is_here].max()) + 1]
        return tuple(found)

    def targets(self) -> list[int]:
        """Indices of the tokens to explain: those of thinking and answer, in order."""
        return [i for i, role in enumerate(self.role) if role in ("thinking", "answer")]


def tokens_by_role(tokens: Tokens) -> dict[str, list[int]]:
    """The ids of thinking and answer, each in order."""
    targets = tokens.targets()
    return {
        role: [int(tokens.ids[i]) for i in targets if tokens.role[i] == role]
        for role in ("thinking", "answer")
    }


def token_table(
    processor,
    batch,
    boxes: np.ndarray | None = None,
    sizes: list[tuple[int, int]] | None = None,
    system: str | None = None,
) -> Tokens:
    """The token table of a batch of one sequence; roles as in `interp.vocabulary.ROLES`.

    Args:
        processor, batch: of one call.
        boxes: of the evidence on a single image, (x0, y0, x1, y1) in 0..1.
        sizes: (height, width) of the images as the processor got them.
        system: the system prompt.
    """
    ids = batch["input_ids"][0].cpu().numpy()
    mask = batch["attention_mask"][0].tolist()
    spelled = token_bytes(processor.tokenizer, ids.tolist())
    spelled = [piece if seen else b"" for piece, seen in zip(spelled, mask, strict=True)]
    is_visual = ids == visual_token_id(processor)
    is_steering = np.isin(ids, steering_ids(processor.tokenizer))
    before = _in_front_of_runs(spelled, is_visual)
    found = views(Seen(processor, batch, sizes, before)) if is_visual.any() else []
    table = patch_table(is_visual, found)
    overlap, is_evidence = np.zeros(len(ids)), np.zeros(len(ids), dtype=bool)
    if boxes is not None and {one.image for one in found} == {0}:
        overlap[is_visual], is_evidence[is_visual] = _evidence(found, boxes)
    return Tokens(
        ids,
        tuple(piece.decode("utf-8", errors="replace") for piece in spelled),
        tuple(
            "padding" if not seen else "image" if visual else role
            for role, visual, seen in zip(
                roles_of(spelled, is_visual | is_steering, processor.tokenizer.eos_token, system),
                is_visual,
                mask,
                strict=True,
            )
        ),
        *table,
        overlap,
        is_evidence,
        next((one.extent for one in found if one.number == 0), (0.0, 1.0, 0.0, 1.0)),
    )


def patch_table(is_visual: Bool[np.ndarray, " token"], found: list[View]) -> np.ndarray:
    """Image, view, patch row and patch column of every token, -1 where not visual.

    Raises:
        ValueError: views of more or fewer tokens than there are.
    """
    table = np.full((4, len(is_visual)), -1)
    of_views = [
        np.stack([np.full(len(v.row), v.image), np.full(len(v.row), v.number), v.row, v.column])
        for v in found
    ]
    visual = np.concatenate(of_views, axis=1) if of_views else table[:, :0]
    if visual.shape[1] != is_visual.sum():
        shapes = [one.shape for one in found]
        raise ValueError(
            f"expected {visual.shape[1]} image tokens for images seen as {shapes}, got "
            f"{int(is_visual.sum())}; take input_ids and pixels from one processor call"
        )
    table[:, is_visual] = visual
    return table


def _evidence(found: list[View], boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Overlap with the boxes, and whether it is evidence, of the views' tokens in turn."""
    overlap, is_evidence = [], []
    for view in found:
        top, bottom, left, right = view.extent
        corner, side = np.array([left, top] * 2), np.array([right - left, bottom - top] * 2)
        inside = np.clip((boxes - corner) / side, 0, 1)
        inside = inside[(inside[:, 2:] > inside[:, :2]).all(axis=1)]
        has_pixels, at = view.row >= 0, (view.row, view.column)
        overlap.append(box_overlap(inside, *view.shape)[at] * has_pixels)
        is_evidence.append(evidence_cells(inside, *view.shape)[at] & has_pixels)
    return np.concatenate(overlap), np.concatenate(is_evidence)


def _in_front_of_runs(spelled: list[bytes], is_visual: Bool[np.ndarray, " token"]) -> list[bytes]:
    """The text between each run of visual tokens and the one before it."""
    ends = np.flatnonzero(np.diff(is_visual.astype(int), prepend=0, append=0)).reshape(-1, 2)
    stops = [0, *ends[:, 1]]
    return [b"".join(spelled[a:b]) for a, b in zip(stops, ends[:, 0], strict=False)]
