"""The calls that analyses, notebooks and rewards share: model and text in, labelled dataset out.

Every function takes either a `VLM` and a `Sample`, or a Hugging Face model and the processor's
batch of one sequence. In the first form the targets are all tokens of thinking and answer, in the
second `positions` (rows of `input_ids`, padding counted) and `targets` (token ids; without them,
the tokens that follow) say what to explain.
"""

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from interp import capture
from interp.checks import check_inputs
from interp.effects import cut_masks, edge_effects
from interp.labelled import as_array, coordinates, finished
from interp.labels import EDGE_PATHS, LAYER_PATHS, ROLES
from interp.ledger import bias_scores, direct_terms, project
from interp.model import VLM, parts, undisturbed
from interp.query import Query, ask, check_ids, source_sets
from interp.readout import Readout, check_gauge, gauge_logits, gauge_rows, read_out

DETAILS = ("full", "tokens", "summary")
REPLAY_BYTES = 2**28  # attention rows that one replay may hold


def ledger(
    model,
    inputs,
    *,
    completion=None,
    positions=None,
    targets=None,
    gauge: str = "centered",
    foils=None,
    detail: str = "full",
    include_value_bias: bool = False,
) -> xr.Dataset:
    """The exact accounting of each target's logit (METHODS.md 2), in logits.

    embed + Σ ffn + Σ value_bias + Σ direct + remainder = logit, `direct` being Eq. 1 of Saliency-R1
    term by term and `logit` the model's own output. What a row cannot see is exactly 0.

    Args:
        model: a `VLM`, or a Hugging Face model (LoRA-wrapped too).
        inputs: a `Sample`, or the processor's output for one sequence.
        completion: teacher-force this `Completion` instead of the sample's own text.
        positions: rows whose next token to explain, instead of all of thinking and answer.
        targets: token ids, one per position.
        gauge: "centered" (above the vocabulary's mean), "raw" or "contrast" (above foils).
        foils: token ids, one per target, for the contrast gauge.
        detail: "full", direct by (target, layer, head, source); "tokens", by (target, source)
            and by (target, layer, role); "summary", the latter alone.
        include_value_bias: spread the value bias over the sources as the release of Saliency-R1
            does; it credits attention sinks.

    Raises:
        ValueError: bad inputs, positions, gauge or detail, each with what was expected.
    """
    if detail not in DETAILS:
        raise ValueError(f"expected a detail of {DETAILS}, got {detail!r}")
    query = ask(model, inputs, completion=completion, positions=positions, targets=targets)
    foils = _checked_foils(query, gauge, foils)
    with torch.no_grad(), undisturbed(query.model):
        context = capture.prefill(query.model, query.batch, query.rows)
        rows_g = gauge_rows(query.where.output_embedding, query.targets, gauge, foils)
        chunks = [
            _ledger_chunk(query, context, rows_g, part, detail, include_value_bias)
            for part in _target_chunks(query, n_variants=1)
        ]
        logit = gauge_logits(context.logits, query.targets, gauge, foils)
        log_probability = context.logits.to(logit.dtype).log_softmax(dim=-1)
    found = {name: torch.cat([chunk[name][1] for chunk in chunks]) for name in chunks[0]}
    dims = {name: pair[0] for name, pair in chunks[0].items()}
    replayed = found.pop("replayed")
    parts_sum = found.pop("parts_sum")
    found["logit"] = logit
    found["remainder"] = logit - parts_sum
    found["replay_drift"] = logit - replayed
    found["log_probability"] = log_probability.gather(1, query.targets[:, None])[:, 0]
    variables = {
        name: (dims.get(name, ("target",)), as_array(value)) for name, value in found.items()
    }
    attributes = {"gauge": gauge, "detail": detail, "include_value_bias": str(include_value_bias)}
    dataset = xr.Dataset(variables, coords=coordinates(query, sources=detail != "summary"))
    return finished(query, dataset.assign_coords(role=list(ROLES)), attributes)


def effects(
    model,
    inputs,
    *,
    completion=None,
    positions=None,
    targets=None,
    sources=None,
    mode: str = "zero",
    gauge: str = "centered",
    foils=None,
) -> xr.Dataset:
    """Edge effects: the exact split of what a target loses without a source set (METHODS.md 3.1).

    total = Σ over path of effect, for every (target, source_set); all cuts ride in one replay.
    Where a set has no member before the target's row, the effect is 0 and `is_defined` False.

    Args:
        model, inputs, completion, positions, targets, gauge, foils: as for `ledger`.
        sources: names of source sets (default: all that the sample has), or {name: rows}; with a
            batch the default is the image.
        mode: "zero", the values read over the cut edges left out without renormalising.

    Raises:
        ValueError: as for `ledger`; unknown mode, unknown source set, unknown or duplicate rows.
    """
    if mode != "zero":
        raise ValueError(f"expected a mode of ('zero',), got {mode!r}")
    query = ask(model, inputs, completion=completion, positions=positions, targets=targets)
    names, members = source_sets(query, sources)
    foils = _checked_foils(query, gauge, foils)
    with torch.no_grad(), undisturbed(query.model):
        context = capture.prefill(query.model, query.batch, query.rows)
        rows_g = gauge_rows(query.where.output_embedding, query.targets, gauge, foils)
        cuts = cut_masks(members, query.rows, context.is_visible)
        chunks = [
            _effects_chunk(query, context, rows_g, cuts, part)
            for part in _target_chunks(query, n_variants=1 + len(names))
        ]
    is_defined = cuts.any(dim=-1).T
    total, by_layer, norm = (torch.cat(column) for column in zip(*chunks, strict=True))
    effect = torch.cat([by_layer.sum(dim=-1), norm[..., None]], dim=-1)
    variables = {
        "effect": (("target", "source_set", "path"), effect * is_defined[..., None]),
        "effect_by_layer": (
            ("target", "source_set", "layer_path", "layer"),
            by_layer * is_defined[..., None, None],
        ),
        "total": (("target", "source_set"), total * is_defined),
        "is_defined": (("target", "source_set"), is_defined),
    }
    dataset = xr.Dataset(
        {name: (dims, as_array(value)) for name, (dims, value) in variables.items()},
        coords=coordinates(query, sources=False),
    )
    dataset = dataset.assign_coords(
        source_set=list(names), path=list(EDGE_PATHS), layer_path=list(LAYER_PATHS)
    )
    return finished(query, dataset, {"gauge": gauge, "mode": mode})


def residual(model, inputs, *, completion=None, positions=None) -> xr.Dataset:
    """The traced residual stream of the model's own forward, (component, layer, position, d_model).

    resid_pre + attn_out = resid_mid and resid_mid + ffn_out = resid_post, up to the rounding of the
    model's dtype.

    Args:
        model, inputs, completion: as for `ledger`.
        positions: rows to keep; all by default.

    Raises:
        ValueError: as for `ledger`.
    """
    if isinstance(model, VLM):
        query = ask(model, inputs, completion=completion)
    else:
        check_inputs(parts(model), inputs)
        first = int(inputs["attention_mask"][0].nonzero()[0])
        query = ask(model, inputs, positions=[first], targets=[0])
    n_tokens = len(query.tokens.ids)
    kept = list(range(n_tokens)) if positions is None else list(positions)
    if not kept or min(kept) < 0 or max(kept) >= n_tokens:
        raise ValueError(f"expected positions in 0..{n_tokens - 1}, got {kept}")
    index = torch.tensor(kept, device=query.rows.device)
    found = capture.residual(query.model, query.batch, index)
    stacked = np.stack([as_array(found[name]) for name in found])
    dataset = xr.Dataset(
        {"residual": (("component", "layer", "position", "d_model"), stacked)},
        coords={
            "component": list(found),
            "layer": np.arange(query.where.n_layers),
            "position": kept,
            "token": ("position", [query.tokens.text[i] for i in kept]),
            "token_role": ("position", [query.tokens.role[i] for i in kept]),
        },
    )
    return finished(query, dataset, {})


# ------------------------------------------------------------------------------------ one chunk


def _target_chunks(query: Query, n_variants: int) -> list[Int[Tensor, " part"]]:
    """Targets in groups whose attention rows fit in REPLAY_BYTES."""
    where = query.where
    per_target = 4 * n_variants * where.n_layers * where.n_heads * len(query.tokens.ids)
    size = max(1, REPLAY_BYTES // per_target)
    return list(torch.arange(len(query.rows), device=query.rows.device).split(size))


def _ledger_chunk(query, context, rows_g, part, detail, include_value_bias) -> dict:
    """Parts of the logits of some targets: name -> (dims, tensor)."""
    rows = query.rows[part]
    played = capture.replay(query.model, context, rows)
    readout = read_out(query.where, rows_g[part], played.final[0])
    layers = [
        _ledger_layer(readout, context, played, rows, n, include_value_bias)
        for n in range(query.where.n_layers)
    ]
    direct, value_bias, ffn = (list(column) for column in zip(*layers, strict=True))
    embed = project(readout.vectors, context.embeddings[rows].to(readout.vectors.dtype))
    by_role = torch.stack([_by_role(query, d.sum(dim=1)) for d in direct], dim=1)
    value_bias, ffn = torch.stack(value_bias, dim=1), torch.stack(ffn, dim=1)
    attention = by_role.sum(dim=-1) + value_bias.sum(dim=-1)
    found = {
        "embed": (("target",), embed),
        "ffn": (("target", "layer"), ffn),
        "value_bias": (("target", "layer", "head"), value_bias),
        "direct_by_layer": (("target", "layer", "role"), by_role),
        "magnitude": (("target",), embed.abs() + (ffn.abs() + attention.abs()).sum(dim=1)),
        "parts_sum": (("target",), embed + (ffn + attention).sum(dim=1)),
        "replayed": (("target",), project(readout.vectors, played.final[0].to(embed.dtype))),
    }
    if detail == "full":
        found["direct"] = (("target", "layer", "head", "source"), torch.stack(direct, dim=1))
    if detail == "tokens":
        found["direct"] = (("target", "source"), sum(d.sum(dim=1) for d in direct))
    return found


def _ledger_layer(
    readout: Readout, context, played, rows, layer: int, include_value_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """direct (target, head, source), value_bias (target, head) and ffn (target) of one layer."""
    folded, bias = readout.folded[layer], readout.biases[layer]
    weights = played.weights[layer][0]
    values, own = context.values[layer].to(folded.dtype), played.own_values[layer].to(folded.dtype)
    direct = direct_terms(folded, values - bias[:, None], own[0] - bias, weights, rows)
    value_bias = bias_scores(folded, bias)
    if include_value_bias:
        direct = direct + weights * value_bias[..., None]
        value_bias = torch.zeros_like(value_bias)
    return direct, value_bias, project(readout.vectors, played.ffn[layer][0].to(folded.dtype))


def _by_role(query: Query, direct: Float[Tensor, "target source"]) -> Float[Tensor, "target role"]:
    role = np.array([ROLES.index(r) for r in query.tokens.role])
    members = np.eye(len(ROLES))[role]
    return direct @ torch.from_numpy(members).to(direct)


def _effects_chunk(query, context, rows_g, cuts, part) -> tuple[Tensor, Tensor, Tensor]:
    rows, cuts = query.rows[part], cuts[:, part]
    clean = torch.zeros_like(cuts[:1])
    played = capture.replay(query.model, context, rows, torch.cat([clean, cuts]))
    readout = read_out(query.where, rows_g[part], played.final[0])
    split = edge_effects(query.where, readout, context, played, rows, cuts)
    return split.total, split.by_layer, split.norm


# -------------------------------------------------------------------------------------- labelling


def _checked_foils(query: Query, gauge: str, foils) -> Tensor | None:
    check_gauge(gauge, foils)
    if foils is None:
        return None
    check_ids(query.where, foils, "foils")
    foils = torch.as_tensor(list(foils), device=query.rows.device)
    if len(foils) != len(query.targets):
        raise ValueError(
            f"expected one foil per target, got {len(foils)} for {len(query.targets)} targets"
        )
    return foils
