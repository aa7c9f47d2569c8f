"""A question to a model: which rows of a sequence predict which tokens.

Both call forms of `interp.extract`, a `VLM` with a `Sample` or a model with the processor's batch,
end here as one `Query`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from interp.algebra.readout import check_gauge, runners_up
from interp.capture.checks import check_inputs
from interp.data.sample import Sample, remember
from interp.extract.sharing import shared
from interp.inputs import prompts, spelling
from interp.inputs.tokens import Tokens, patch_table
from interp.inputs.views import merged_views
from interp.model import families
from interp.model.identity import fingerprints
from interp.model.parts import Parts
from interp.model.vlm import PROMPTS, VLM

REPLAY_BYTES = 2**28  # attention rows that one replay may hold


@dataclass(frozen=True)
class Query:
    """Targets of one sequence of one model."""

    model: nn.Module
    parts: Parts
    batch: Mapping[str, Tensor]
    tokens: Tokens
    rows: Int[Tensor, " target"]
    """The output at position `rows[k]` predicts token `targets[k]`."""
    targets: Int[Tensor, " target"]
    target_text: tuple[str, ...]
    has_boxes: bool
    attributes: dict[str, str]
    """Which model and sample this is."""
    tokenizer: object = None
    """Reads targets and foils that are given as text; None where ids alone are understood."""

    @property
    def is_visual(self) -> Bool[Tensor, " token"]:
        """Which rows hold visual tokens, on the model's device."""
        return torch.from_numpy(self.tokens.is_visual).to(self.rows.device)

    @property
    def places(self) -> list[tuple[str, int]]:
        """Each target's role, with the number of tokens of that role before it."""
        role = self.tokens.role
        after = [row + 1 for row in self.rows.tolist()]
        return [(role[i], role[:i].count(role[i])) if i < len(role) else ("", 0) for i in after]


def check_pair(vlm, sample) -> None:
    """Refuses a bare model or a batch where a call needs the processor and the sample's image.

    Raises:
        ValueError: anything but a VLM and a Sample.
    """
    if not isinstance(vlm, VLM) or not isinstance(sample, Sample):
        raise ValueError(
            "expected a VLM, as interp.load_model or interp.wrap gives it, and a Sample, got "
            f"{type(vlm).__name__} and {type(sample).__name__}"
        )


def ask(first, second, *, completion=None, positions=None, targets=None) -> Query:
    """A `Query` from (VLM, Sample) or (model, batch).

    Raises:
        ValueError: as `interp.extract.ledger`.
    """
    if isinstance(first, VLM):
        return _ask_sample(first, second, completion, positions, targets)
    if completion is not None:
        raise ValueError("expected completion= with a VLM and a Sample, got a model and a batch")
    if isinstance(second, Sample):
        raise ValueError("expected a VLM with a Sample, got a bare model; use interp.load_model")
    if not isinstance(first, nn.Module):
        raise ValueError(
            "expected a VLM and a Sample, or a model and the processor's batch, got "
            f"{type(first).__name__} and {type(second).__name__}"
        )
    parts = families.parts(first)
    odd = [n for n, v in second.items() if not isinstance(v, Tensor)] if second else []
    if odd or not isinstance(second, Mapping):
        raise ValueError(
            "expected the processor's batch of tensors, got "
            f"{', '.join(odd) or type(second).__name__} of another kind; return_tensors='pt'"
        )
    batch = {name: value.to(first.device) for name, value in second.items()}
    check_inputs(parts, batch)
    tokens = _bare_table(parts, batch)
    if positions is None:
        raise ValueError(
            "expected positions=[…], the rows whose next token to explain, got none; in each(…) a "
            'sample is then (inputs, {"positions": […]})'
        )
    rows, ids = _checked_targets(tokens, positions, targets)
    check_ids(parts, ids, "target ids")
    model_hash, adapter_hash = fingerprints(first)
    attributes = {
        "model": first.config._name_or_path or type(first).__name__,
        "model_hash": model_hash,
        "adapter_hash": adapter_hash,
    }
    return Query(
        model=first,
        parts=parts,
        batch=batch,
        tokens=tokens,
        rows=torch.from_numpy(rows).to(first.device),
        targets=torch.from_numpy(ids).to(first.device),
        target_text=tuple(str(i) for i in ids),
        has_boxes=False,
        attributes=attributes,
    )


def _ask_sample(vlm: VLM, sample: Sample, completion, positions, targets) -> Query:
    if not isinstance(sample, Sample):
        raise ValueError(
            f"expected a Sample with a VLM, got {type(sample).__name__}; "
            "interp.Sample(image=…, question=…) makes one"
        )
    parts, tokenizer = families.parts(vlm.model), vlm.processor.tokenizer
    completion = prompts.given_text(tokenizer, completion)
    inputs, batch, attributes = shared(
        "inputs", (vlm, sample), lambda: _forced(vlm, sample, completion), completion
    )
    if positions is None:
        positions = [i - 1 for i in inputs.tokens.targets()]
    rows, ids = _checked_targets(inputs.tokens, positions, _as_ids(tokenizer, targets, "targets"))
    check_ids(parts, ids, "target ids")
    pieces = spelling.token_bytes(tokenizer, ids.tolist())
    text = tuple(piece.decode("utf-8", errors="replace") for piece in pieces)
    return Query(
        model=vlm.model,
        parts=parts,
        batch=batch,
        tokens=inputs.tokens,
        rows=torch.from_numpy(rows).to(vlm.device),
        targets=torch.from_numpy(ids).to(vlm.device),
        target_text=text,
        has_boxes=sample.boxes is not None,
        attributes=attributes,
        tokenizer=tokenizer,
    )


def _forced(vlm: VLM, sample: Sample, completion) -> tuple:
    """The inputs of a sample with its text, their batch on the model's device, and their origin."""
    processor, system = vlm.processor, PROMPTS[vlm.prompt]
    # Texts about one image have its pixels in common.
    prompt = shared("prompt", (processor, sample), lambda: _placed(vlm, [sample], system), system)
    inputs = prompts.teacher_forced(processor, sample, system, completion, prompt)
    batch = dict(inputs.batch)
    attributes = origin(vlm, sample, completion)
    remember(sample, attributes["data_hash"])
    return inputs, batch, attributes


def _placed(vlm: VLM, samples: list[Sample], system: str | None) -> dict[str, Tensor]:
    """A prompt on the model's device."""
    batch = prompts.prompts(vlm.processor, samples, system)
    return {name: value.to(vlm.device) for name, value in batch.items()}


def origin(vlm: VLM, sample: Sample, completion) -> dict[str, str]:
    """Attributes that say which model, text and sample a dataset is about."""
    model_hash, adapter_hash = shared("fingerprints", (vlm.model,), lambda: fingerprints(vlm.model))
    return {
        "model": vlm.name,
        "revision": vlm.revision,
        "model_hash": model_hash,
        "adapter": vlm.adapter,
        "adapter_hash": adapter_hash,
        "prompt": vlm.prompt,
        "sample": sample.id,
        "text_source": "reference" if completion is None else completion.source,
        "text_is_complete": "yes" if completion is None or completion.is_complete else "no",
        "data": f"{sample.dataset}/{sample.split}",
        "data_hash": sample.fingerprint,
    }


def _bare_table(parts: Parts, batch) -> Tokens:
    """The table of tokens without a processor: which rows are visual, and where."""
    ids = batch["input_ids"][0].cpu().numpy()
    is_image = ids == parts.image_token_id
    if "image_grid_thw" in batch:
        grids, merge = batch["image_grid_thw"].tolist(), int(parts.patches_per_token**0.5)
        table = patch_table(is_image, merged_views(grids, merge))
    else:  # without a processor nobody knows how tiles lie; where they stand, alone
        table = np.stack([is_image - 1, is_image - 1, *[np.full(len(ids), -1)] * 2])
    mask = batch["attention_mask"][0].tolist()
    roles = tuple(
        "padding" if not seen else "image" if visual else "text"
        for seen, visual in zip(mask, is_image, strict=True)
    )
    text = tuple(str(i) for i in ids)
    nothing = np.zeros(len(ids))
    return Tokens(ids, text, roles, *table, nothing, nothing.astype(bool))


def _checked_targets(tokens: Tokens, positions, targets) -> tuple[np.ndarray, np.ndarray]:
    """Rows and target ids, zipped; without targets, the tokens that follow."""
    n_tokens = len(tokens.ids)
    rows = whole_numbers(positions, "positions")
    if len(rows) == 0:
        raise ValueError(
            "expected at least one target, got none; the text has no thinking or answer"
        )
    for row in rows:
        if not 0 <= row < n_tokens:
            raise ValueError(f"expected target positions in 0..{n_tokens - 1}, got {row}")
        if tokens.role[row] == "padding":
            raise ValueError(f"expected target positions outside the padding, got {row}")
        if targets is None and (row == n_tokens - 1 or tokens.role[row + 1] == "padding"):
            raise ValueError(
                f"expected a token after position {row}, got the end; pass targets=[…]"
            )
    if targets is None:
        return rows, tokens.ids[rows + 1].astype(np.int64)
    ids = whole_numbers(targets, "target ids")
    if len(ids) != len(rows):
        raise ValueError(
            f"expected one target id per position, got {len(ids)} targets for {len(rows)} positions"
        )
    return rows, ids


def _as_ids(tokenizer, values, name: str):
    """Values with the id of a token in place of its text, where there is a tokenizer.

    Raises:
        ValueError: a text that is no token, or more than one.
    """
    is_listed = isinstance(values, list | tuple)
    if tokenizer is None or not is_listed or not any(isinstance(one, str) for one in values):
        return values
    return [_id_of(tokenizer, one, name) if isinstance(one, str) else one for one in values]


def _id_of(tokenizer, text: str, name: str) -> int:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if len(ids) != 1:
        pieces = [one.decode(errors="replace") for one in spelling.token_bytes(tokenizer, ids)]
        raise ValueError(f"expected {name} of one token each, got {text!r}, which is {pieces}")
    return ids[0]


def whole_numbers(values, name: str) -> np.ndarray:
    """Whole numbers as they are given, of Python, NumPy or torch; nothing is rounded or counted.

    Raises:
        ValueError: fractions, truth values (a mask is no list of rows), text, or nothing to list.
    """
    if isinstance(values, str | bytes) or not hasattr(values, "__iter__"):
        raise ValueError(f"expected {name} as a list of whole numbers, got {values!r:.80}")
    listed = values.cpu() if isinstance(values, Tensor) else list(values)
    if not isinstance(listed, Tensor) and any(isinstance(one, bool) for one in listed):
        listed = [True]  # among numbers it would count as one of them
    array = np.asarray(listed)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        kind = "truth values; use np.flatnonzero" if array.dtype.kind == "b" else f"{array.dtype}"
        raise ValueError(f"expected {name} as a list of whole numbers, got {kind}")
    return array.astype(np.int64)


def check_ids(parts: Parts, ids, name: str) -> None:
    """Raises ValueError for ids outside the vocabulary; on a GPU they would end the process."""
    wrong = [int(i) for i in ids if not 0 <= int(i) < parts.n_vocabulary]
    if wrong:
        raise ValueError(f"expected {name} in 0..{parts.n_vocabulary - 1}, got {wrong}")


def foil_ids(
    query: Query, gauge: str, foils, logits: Tensor | None
) -> Int[Tensor, " target"] | None:
    """One foil per target, or one id for all; None, or "runner-up", is the likeliest other token.

    Raises:
        ValueError: an unknown gauge, missing foils, or not one valid token per target.
    """
    check_gauge(gauge, foils)
    if foils is None:
        return None
    if isinstance(foils, str):
        foils = [None] * len(query.targets)
    elif isinstance(foils, int | np.integer) and not isinstance(foils, bool):
        foils = [foils] * len(query.targets)
    elif not isinstance(foils, Iterable):
        raise ValueError(f"expected foils as ids or tokens, one per target, got {foils!r}")
    named = list(foils)
    named = _as_ids(query.tokenizer, named, "foils")
    if len(named) != len(query.targets):
        raise ValueError(
            f"expected one foil per target, got {len(named)} for {len(query.targets)} targets"
        )
    given = whole_numbers([foil for foil in named if foil is not None], "foils")
    check_ids(query.parts, given, "foils")
    if None not in named:
        return torch.from_numpy(given).to(query.rows.device)
    if logits is None:
        raise ValueError(
            "expected logits to find runners-up in, got a forward without them; pass foils=[…] or "
            "ask with a forward of its own"
        )
    runner_up_ids = runners_up(logits, query.targets).tolist()
    ids = [
        other if foil is None else foil for foil, other in zip(named, runner_up_ids, strict=True)
    ]
    return torch.tensor(ids, device=query.rows.device)


def target_chunks(query: Query, n_variants: int) -> list[Int[Tensor, " part"]]:
    """Targets in groups whose attention rows fit in REPLAY_BYTES."""
    parts = query.parts
    per_target = 4 * n_variants * parts.n_layers * parts.n_heads * len(query.tokens.ids)
    size = max(1, REPLAY_BYTES // per_target)
    return list(torch.arange(len(query.rows), device=query.rows.device).split(size))
