"""The token table: role, image, patch and overlap with the evidence, by row of `input_ids`.

Spans are found on the token ids themselves: every token of a byte-level BPE stands for bytes, the
bytes spell the text, and roles are read off byte ranges. Nothing is decoded and tokenized again,
because sampled ids need not survive that. A tag's last token may swallow the newline behind it, and
a text's last token the newline before the closing tag; a token belongs to a text if it holds at
least one byte of it once white space around it is stripped.
"""

import re
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from interp.data.boxes import box_overlap, evidence_cells
from interp.inputs.completions import _stripped, _text_spans
from interp.inputs.spelling import token_bytes
from interp.vocabulary import ROLES

_TURN = re.compile(rb"<\|im_start\|>(system|user|assistant)\n(.*?)(<\|im_end\|>|$)", re.DOTALL)


_MARK = re.compile(rb"<\|[a-z_]+\|>")


_TURN_ROLE = {b"system": "system", b"user": "question"}


@dataclass(frozen=True)
class Tokens:
    """A table with one entry per token position of a sequence."""

    ids: Int[np.ndarray, " token"]
    text: tuple[str, ...]
    role: tuple[str, ...]
    """One of `interp.vocabulary.ROLES`."""
    image: Int[np.ndarray, " token"]
    """Number of the image, or -1 where not visual; likewise for row and column of the patch."""
    row: Int[np.ndarray, " token"]
    column: Int[np.ndarray, " token"]
    box_overlap: Float[np.ndarray, " token"]
    """Share of the patch's area inside the union of the evidence boxes."""
    is_evidence: Bool[np.ndarray, " token"]
    """At least half inside the union, or the patch with the largest share of one of the boxes."""

    @property
    def is_visual(self) -> Bool[np.ndarray, " token"]:
        """Which rows hold visual tokens."""
        return self.image >= 0

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


def token_table(processor, batch, boxes: np.ndarray | None = None) -> Tokens:
    """The token table of a batch of one sequence; roles as in `interp.vocabulary.ROLES`."""
    ids = batch["input_ids"][0].cpu().numpy()
    spelled = token_bytes(processor.tokenizer, ids.tolist())
    image_id = processor.image_token_id
    grids = batch["image_grid_thw"].tolist() if "image_grid_thw" in batch else []
    merge = processor.image_processor.merge_size
    image, row, column = patch_table(ids == image_id, grids, merge)
    overlap, is_evidence = np.zeros(len(ids)), np.zeros(len(ids), dtype=bool)
    if boxes is not None and len(grids) == 1:
        shape = grids[0][1] // merge, grids[0][2] // merge
        at = row[ids == image_id], column[ids == image_id]
        overlap[ids == image_id] = box_overlap(boxes, *shape)[at]
        is_evidence[ids == image_id] = evidence_cells(boxes, *shape)[at]
    roles = _roles(spelled)
    mask = batch["attention_mask"][0].tolist()
    roles = ["image" if i == image_id else role for i, role in zip(ids, roles, strict=True)]
    roles = [role if seen else "padding" for role, seen in zip(roles, mask, strict=True)]
    text = tuple(piece.decode("utf-8", errors="replace") for piece in spelled)
    return Tokens(ids, text, tuple(roles), image, row, column, overlap, is_evidence)


def patch_table(
    is_visual: np.ndarray, grids: list[list[int]], merge: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image number, patch row and patch column of every token, -1 where not visual.

    The merged grid is row-major, one token per `merge` x `merge` patches.
    """
    table = np.full((3, len(is_visual)), -1)
    visual = [
        (number, r, c)
        for number, (frames, height, width) in enumerate(grids)
        for _ in range(frames)
        for r in range(height // merge)
        for c in range(width // merge)
    ]
    if len(visual) != is_visual.sum():
        raise ValueError(
            f"expected {len(visual)} image tokens for image_grid_thw={grids}, got "
            f"{int(is_visual.sum())}; take input_ids and image_grid_thw from one processor call"
        )
    if visual:
        table[:, is_visual] = np.array(visual).T
    return table[0], table[1], table[2]


def _roles(spelled: list[bytes]) -> list[str]:
    """The role of each token, from the byte ranges of the chat turns."""
    text = b"".join(spelled)
    codes = np.full(len(text) + 1, ROLES.index("template"))
    turns = list(_TURN.finditer(text))
    last = max((n for n, turn in enumerate(turns) if turn[1] == b"user"), default=-1)
    for number, turn in enumerate(turns):
        kind, start, content = turn[1], turn.start(2), turn[2]
        if kind == b"assistant" and number > last:
            for role, span in _text_spans(content).items():
                codes[start + span.start : start + span.stop] = ROLES.index(role)
        else:
            span = _stripped(content, 0, len(content))
            is_earlier = kind != b"system" and number < last
            role = "earlier" if is_earlier else _TURN_ROLE[kind]
            codes[start + span.start : start + span.stop] = ROLES.index(role)
            for mark in _MARK.finditer(content):
                codes[start + mark.start() : start + mark.end()] = ROLES.index("template")
    ends = np.cumsum([len(piece) for piece in spelled])
    template = ROLES.index("template")
    roles = []
    for piece, end in zip(spelled, ends, strict=True):
        piece_codes = [c for c in codes[end - len(piece) : end] if c != template]
        roles.append(ROLES[piece_codes[0]] if piece_codes else "template")
    return roles
