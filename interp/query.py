"""What is asked of a model: which rows predict which tokens, and which rows form a source set.

Both call forms of `interp.extract`, a `VLM` with a `Sample` or a model with the processor's batch,
end here as one `Query`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from interp import inputs
from interp.checks import check_inputs
from interp.labels import SINKLESS, SOURCE_SETS
from interp.model import PROMPTS, VLM, Parts, fingerprint, parts
from interp.readout import check_gauge, runners_up
from interp.sample import Sample

REPLAY_BYTES = 2**28  # attention rows that one replay may hold


@dataclass(frozen=True)
class Query:
    """Targets of one sequence of one model."""

    model: nn.Module
    where: Parts
    batch: Mapping[str, Tensor]
    tokens: inputs.Tokens
    rows: Int[Tensor, " target"]
    """Row k predicts token `targets[k]`."""
    targets: Int[Tensor, " target"]
    target_text: tuple[str, ...]
    has_boxes: bool
    attributes: dict[str, str]
    """Which model and sample this is."""

    @property
    def places(self) -> list[tuple[str, int]]:
        """Of each target the role, and how many tokens of that role stand before it."""
        role = self.tokens.role
        after = [row + 1 for row in self.rows.tolist()]
        return [(role[i], role[:i].count(role[i])) if i < len(role) else ("", 0) for i in after]


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
    where = parts(first)
    batch = {name: value.to(first.device) for name, value in second.items()}
    check_inputs(where, batch)
    tokens = _bare_table(where, batch)
    if positions is None:
        raise ValueError("expected positions=[…], the rows whose next token to explain, got none")
    rows, ids = _checked_targets(tokens, positions, targets)
    check_ids(where, ids, "target ids")
    attributes = {
        "model": first.config._name_or_path or type(first).__name__,
        "model_hash": fingerprint(first),
        "adapter_hash": fingerprint(first, adapter=True),
    }
    return Query(
        model=first,
        where=where,
        batch=batch,
        tokens=tokens,
        rows=torch.from_numpy(rows).to(first.device),
        targets=torch.from_numpy(ids).to(first.device),
        target_text=tuple(str(i) for i in ids),
        has_boxes=False,
        attributes=attributes,
    )


def _ask_sample(vlm: VLM, sample: Sample, completion, positions, targets) -> Query:
    where = parts(vlm.model)
    made = inputs.teacher_forced(vlm.processor, sample, PROMPTS[vlm.prompt], completion)
    batch = {name: value.to(vlm.device) for name, value in made.batch.items()}
    if positions is None:
        positions = [i - 1 for i in made.tokens.targets()]
    rows, ids = _checked_targets(made.tokens, positions, targets)
    check_ids(where, ids, "target ids")
    attributes = {
        "model": vlm.name,
        "revision": vlm.revision,
        "model_hash": vlm.fingerprint,
        "adapter": vlm.adapter,
        "adapter_hash": fingerprint(vlm.model, adapter=True),
        "prompt": vlm.prompt,
        "sample": sample.id,
        "data": f"{sample.dataset}/{sample.split}",
        "data_hash": sample.fingerprint,
    }
    pieces = inputs.token_bytes(vlm.processor.tokenizer, ids.tolist())
    text = tuple(piece.decode("utf-8", errors="replace") for piece in pieces)
    return Query(
        model=vlm.model,
        where=where,
        batch=batch,
        tokens=made.tokens,
        rows=torch.from_numpy(rows).to(vlm.device),
        targets=torch.from_numpy(ids).to(vlm.device),
        target_text=text,
        has_boxes=sample.boxes is not None,
        attributes=attributes,
    )


def _bare_table(where: Parts, batch) -> inputs.Tokens:
    """The table of tokens without a processor: which rows are visual, and where."""
    ids = batch["input_ids"][0].cpu().numpy()
    is_image = ids == where.image_token_id
    grids = batch["image_grid_thw"].tolist() if "image_grid_thw" in batch else []
    image, row, column = inputs.patch_table(is_image, grids, int(where.patches_per_token**0.5))
    mask = batch["attention_mask"][0].tolist()
    roles = tuple(
        "padding" if not seen else "image" if visual else "text"
        for seen, visual in zip(mask, is_image, strict=True)
    )
    text = tuple(str(i) for i in ids)
    nothing = np.zeros(len(ids))
    return inputs.Tokens(ids, text, roles, image, row, column, nothing, nothing.astype(bool))


def _checked_targets(tokens: inputs.Tokens, positions, targets) -> tuple[np.ndarray, np.ndarray]:
    """Rows and target ids, zipped; without targets, the tokens that follow."""
    n_tokens = len(tokens.ids)
    rows = np.asarray(list(positions), dtype=np.int64)
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
    ids = np.asarray(list(targets), dtype=np.int64)
    if len(ids) != len(rows):
        raise ValueError(
            f"expected one target id per position, got {len(ids)} targets for {len(rows)} positions"
        )
    return rows, ids


def check_ids(where: Parts, ids, name: str) -> None:
    """Raises ValueError for ids outside the vocabulary; on a GPU they would end the process."""
    wrong = [int(i) for i in ids if not 0 <= int(i) < where.n_vocabulary]
    if wrong:
        raise ValueError(f"expected {name} in 0..{where.n_vocabulary - 1}, got {wrong}")


def foil_ids(query: Query, gauge: str, foils, logits: Tensor) -> Int[Tensor, " target"] | None:
    """One foil per target; None, or "runner-up" for all, is the likeliest other token there.

    Raises:
        ValueError: an unknown gauge, missing foils, or not one valid id per target.
    """
    check_gauge(gauge, foils)
    if foils is None:
        return None
    named = [None] * len(query.targets) if isinstance(foils, str) else list(foils)
    if len(named) != len(query.targets):
        raise ValueError(
            f"expected one foil per target, got {len(named)} for {len(query.targets)} targets"
        )
    check_ids(query.where, [foil for foil in named if foil is not None], "foils")
    others = runners_up(logits, query.targets).tolist()
    ids = [other if foil is None else foil for foil, other in zip(named, others, strict=True)]
    return torch.tensor(ids, device=query.rows.device)


def target_chunks(query: Query, n_variants: int) -> list[Int[Tensor, " part"]]:
    """Targets in groups whose attention rows fit in REPLAY_BYTES."""
    where = query.where
    per_target = 4 * n_variants * where.n_layers * where.n_heads * len(query.tokens.ids)
    size = max(1, REPLAY_BYTES // per_target)
    return list(torch.arange(len(query.rows), device=query.rows.device).split(size))


# -------------------------------------------------------------------------------------- source sets


def source_sets(
    query: Query,
    sources: Iterable[str] | Mapping[str, Iterable[int]] | None,
    is_sink: Bool[Tensor, " token"],
) -> tuple[tuple[str, ...], Bool[Tensor, "source_set token"]]:
    """Names and members of source sets, by name (see `named_sets`) or as lists of rows.

    Without `sources`, all that the sample has; one without its sinks only where it has any.

    Raises:
        ValueError: an unknown name, a set that this sample cannot have, unknown or duplicate rows.
    """
    known = named_sets(query, is_sink.cpu().numpy())
    if sources is None:
        sources = _usual_sets(known)
    if isinstance(sources, Mapping):
        members = {name: _row_mask(query, name, rows) for name, rows in sources.items()}
    else:
        for name in sources:
            if name not in known or not known[name].any():
                possible = sorted(k for k in known if known[k].any())
                raise ValueError(
                    f"expected source sets of {possible} for this sample, got {name!r}; "
                    "pass others as sources={name: [rows]}"
                )
        members = {name: known[name] for name in sources}
    if not members:
        raise ValueError("expected at least one source set, got none")
    stacked = torch.from_numpy(np.stack(list(members.values())))
    return tuple(members), stacked.to(query.rows.device)


def named_sets(query: Query, is_sink: np.ndarray) -> dict[str, np.ndarray]:
    """Boolean membership by name; evidence and background only where there are boxes.

    Image and evidence also without their sinks, as "image-nosink" and "evidence-nosink".
    """
    role = np.array(query.tokens.role)
    sets = {name: role == name for name in ("image", "question", "thinking")}
    if query.has_boxes and sets["image"].any():
        sets["evidence"] = query.tokens.is_evidence
        sets["background"] = sets["image"] & ~sets["evidence"]
    visual = [name for name in ("image", "evidence") if name in sets]
    return sets | {name + SINKLESS: sets[name] & ~is_sink for name in visual}


def _usual_sets(known: Mapping[str, np.ndarray]) -> list[str]:
    """Sets with members; one without its sinks only where that makes a difference."""
    names = [name for name in SOURCE_SETS if name in known and known[name].any()]
    without = [name + SINKLESS for name in names if name + SINKLESS in known]
    differing = [n for n in without if (known[n] != known[n.removesuffix(SINKLESS)]).any()]
    return names + [name for name in differing if known[name].any()]


def visual_sets(query: Query, is_sink: Bool[Tensor, " token"]) -> list[str]:
    """Image, and evidence where there are boxes; either without its sinks where it has any."""
    known = named_sets(query, is_sink.cpu().numpy())
    return [name for name in _usual_sets(known) if name.startswith(("image", "evidence"))]


def _row_mask(query: Query, name: str, rows: Iterable[int]) -> np.ndarray:
    rows, mask = list(rows), np.zeros(len(query.tokens.ids), dtype=bool)
    unknown = [r for r in rows if not 0 <= r < len(mask) or query.tokens.role[r] == "padding"]
    if unknown or len(set(rows)) != len(rows) or not rows:
        raise ValueError(
            f"expected distinct rows in 0..{len(mask) - 1} outside the padding for source set "
            f"{name!r}, got {unknown or rows}"
        )
    mask[rows] = True
    return mask
