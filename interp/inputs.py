"""Sample + processor → model inputs and the table of tokens.

Spans are found on the token ids themselves: every token of a byte-level BPE stands for bytes, the
bytes spell the text, and roles are read off byte ranges. Nothing is decoded and tokenized again,
because sampled ids need not survive that. A tag's last token may swallow the newline behind it, and
a text's last token the newline before the closing tag; a token belongs to a text if it holds at
least one byte of it once white space around it is stripped.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from transformers import BatchFeature
from transformers.convert_slow_tokenizer import bytes_to_unicode

from interp.boxes import box_overlap, evidence_cells
from interp.labels import ROLES
from interp.sample import THINK_CLOSE, THINK_OPEN, Sample, open_image

_THINK = re.compile(rb"\s*" + THINK_OPEN.encode() + rb"(.*?)" + THINK_CLOSE.encode(), re.DOTALL)
_TURN = re.compile(rb"<\|im_start\|>(system|user|assistant)\n(.*?)(<\|im_end\|>|$)", re.DOTALL)
_MARK = re.compile(rb"<\|[a-z_]+\|>")
_TURN_ROLE = {b"system": "system", b"user": "question"}


@dataclass(frozen=True)
class Completion:
    """What a model wrote for one image and question."""

    text: str
    """Decoded, without the end token."""
    token_ids: tuple[int, ...]
    """As sampled, end token included where there is one; the truth that everything else reads."""
    thinking: str | None
    """Text between the tags, stripped; None without a complete thinking span."""
    answer: str
    """Text after the closing tag, or all of it where there is no tag; stripped."""
    is_complete: bool
    """It ended with the end token rather than at the length limit."""


@dataclass(frozen=True)
class Tokens:
    """One row of `input_ids` per entry."""

    ids: Int[np.ndarray, " token"]
    text: tuple[str, ...]
    role: tuple[str, ...]
    """One of `interp.labels.ROLES`."""
    image: Int[np.ndarray, " token"]
    """Number of the image, or -1 where not visual; likewise for row and column of the patch."""
    row: Int[np.ndarray, " token"]
    column: Int[np.ndarray, " token"]
    box_overlap: Float[np.ndarray, " token"]
    """Share of the patch's area inside the union of the evidence boxes."""
    is_evidence: Bool[np.ndarray, " token"]
    """At least half inside the union, or the patch with the largest share of one of the boxes."""

    def targets(self) -> list[int]:
        """Indices of the tokens to explain: those of thinking and answer, in order."""
        return [i for i, role in enumerate(self.role) if role in ("thinking", "answer")]


@dataclass(frozen=True)
class Inputs:
    """What the model reads, and what each row of it is."""

    batch: BatchFeature
    tokens: Tokens


def tokens_by_role(tokens: Tokens) -> dict[str, list[int]]:
    """The ids of thinking and answer, each in order."""
    targets = tokens.targets()
    return {
        role: [int(tokens.ids[i]) for i in targets if tokens.role[i] == role]
        for role in ("thinking", "answer")
    }


# ------------------------------------------------------------------------------------ to the model


def prompts(processor, pairs: list[tuple], system: str | None) -> BatchFeature:
    """Left-padded prompts for (image, question) pairs, ending where the model starts to write.

    Raises:
        ValueError: an unreadable image, or a special token inside a question.
    """
    texts, images = [], []
    for image, question in pairs:
        texts.append(prompt_text(processor, question, system))
        images.append(open_image(image))
    return processor(
        images=images,
        text=texts,
        padding=True,
        padding_side="left",
        add_special_tokens=False,
        return_tensors="pt",
    )


def prompt_text(processor, question: str, system: str | None) -> str:
    """The chat up to where the model starts to write, its image as one placeholder.

    Raises:
        ValueError: a special token inside the question.
    """
    special = next((t for t in processor.tokenizer.all_special_tokens if t in question), None)
    if special is not None:
        raise ValueError(
            f"expected a question without special tokens, got {special!r} in it; rewrite it"
        )
    content = [{"type": "image"}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def teacher_forced(
    processor, sample: Sample, system: str | None, completion: Completion | None = None
) -> Inputs:
    """Prompt and text as one sequence: the sample's own text, or a completion's sampled ids.

    Raises:
        ValueError: an empty answer, or what `prompts` raises.
    """
    ids = text_ids(processor, sample, completion)
    batch = prompts(processor, [(sample.image, sample.question)], system)
    extend = torch.tensor([ids])
    batch["input_ids"] = torch.cat([batch["input_ids"], extend], dim=1)
    for name, value in (("attention_mask", 1), ("mm_token_type_ids", 0)):
        filled = torch.full_like(extend, value, dtype=batch[name].dtype)
        batch[name] = torch.cat([batch[name], filled], dim=1)
    return Inputs(batch, token_table(processor, batch, sample.boxes))


def text_ids(processor, sample: Sample, completion: Completion | None = None) -> list[int]:
    """The text as token ids: the sample's own with an end token, or a completion's as sampled.

    Raises:
        ValueError: a completion without an answer.
    """
    tokenizer = processor.tokenizer
    if completion is None:
        text = tokenizer(sample.text, add_special_tokens=False).input_ids
        return [*text, tokenizer.eos_token_id]
    if not completion.answer:
        raise ValueError(
            f"{sample.id}: expected a completion with an answer, got {completion.text!r}; "
            "raise max_new_tokens or leave the sample out"
        )
    return list(completion.token_ids)


# ------------------------------------------------------------------------------ the table of tokens


def token_table(processor, batch, boxes: np.ndarray | None = None) -> Tokens:
    """What each row of a batch of one sequence is; roles as `interp.labels.ROLES`."""
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
    for turn in _TURN.finditer(text):
        kind, start, content = turn[1], turn.start(2), turn[2]
        if kind == b"assistant":
            for role, span in _text_spans(content).items():
                codes[start + span.start : start + span.stop] = ROLES.index(role)
        else:
            span = _stripped(content, 0, len(content))
            codes[start + span.start : start + span.stop] = ROLES.index(_TURN_ROLE[kind])
            for mark in _MARK.finditer(content):
                codes[start + mark.start() : start + mark.end()] = ROLES.index("template")
    ends = np.cumsum([len(piece) for piece in spelled])
    template = ROLES.index("template")
    roles = []
    for piece, end in zip(spelled, ends, strict=True):
        found = [c for c in codes[end - len(piece) : end] if c != template]
        roles.append(ROLES[found[0]] if found else "template")
    return roles


def _text_spans(written: bytes) -> dict[str, slice]:
    """Byte ranges of thinking and answer in what a model wrote; absent where there is none."""
    think = _THINK.match(written)
    if think is None:
        is_open = written.lstrip().startswith(THINK_OPEN.encode())
        spans = {} if is_open else {"answer": _stripped(written, 0, len(written))}
    else:
        spans = {
            "thinking": _stripped(written, think.start(1), think.end(1)),
            "answer": _stripped(written, think.end(), len(written)),
        }
    return {role: span for role, span in spans.items() if span.stop > span.start}


def _stripped(text: bytes, start: int, stop: int) -> slice:
    content = text[start:stop]
    lead = len(content) - len(content.lstrip())
    return slice(start + lead, max(start + len(content.rstrip()), start + lead))


# ------------------------------------------------------------------------------------- token bytes


@lru_cache
def _byte_of() -> dict[str, int]:
    return {char: byte for byte, char in bytes_to_unicode().items()}


def token_bytes(tokenizer, ids: list[int]) -> list[bytes]:
    """What each token of a byte-level BPE spells; an id without a token spells nothing."""
    added = tokenizer.added_tokens_decoder
    byte_of = _byte_of()
    pieces = []
    for token_id, token in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True):
        if token_id in added:
            pieces.append(added[token_id].content.encode())
        else:
            pieces.append(bytes(byte_of[char] for char in token or ""))
    return pieces


def completion(tokenizer, ids: list[int]) -> Completion:
    """A completion from generated ids; padding behind the end token is dropped."""
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    stops = [i for i, token_id in enumerate(ids) if token_id in (end, pad)]
    is_complete = bool(stops) and ids[stops[0]] == end
    kept = ids[: stops[0] + is_complete] if stops else ids
    written = b"".join(token_bytes(tokenizer, kept[: len(kept) - is_complete]))
    spans = _text_spans(written)
    texts = {role: written[span].decode("utf-8", errors="replace") for role, span in spans.items()}
    return Completion(
        text=written.decode("utf-8", errors="replace"),
        token_ids=tuple(kept),
        thinking=texts.get("thinking"),
        answer=texts.get("answer", ""),
        is_complete=is_complete,
    )


def is_well_formed(tokenizer, text: Completion) -> bool:
    """Exactly one <think>…</think> with something in it, an answer, the end token; nothing else.

    A special token among the text (a new turn, say) would make it another conversation.
    """
    inner = text.token_ids[: len(text.token_ids) - text.is_complete]
    return (
        text.is_complete
        and text.text.count(THINK_OPEN) == text.text.count(THINK_CLOSE) == 1
        and bool(text.thinking)
        and bool(text.answer)
        and not set(tokenizer.all_special_ids) & set(inner)
    )
