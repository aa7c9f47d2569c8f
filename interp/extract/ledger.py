"""The ledger: every part of each target's logit (METHODS.md 2)."""

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from interp.algebra.ledger import bias_scores, direct_terms, project
from interp.algebra.readout import Readout, gauge_logits, read_out
from interp.capture.checks import are_sums_checked
from interp.capture.prefill import Prefills
from interp.capture.replay import Replay, replay, replays
from interp.extract.arguments import Foils, Inputs, Model, Positions, TargetTokens, Text
from interp.extract.dataset import as_array, coordinates, finished, joined
from interp.extract.prefilled import Asked, asked
from interp.extract.question import Query, target_chunks
from interp.model.state import undisturbed
from interp.vocabulary import BOUNDS, ROLES

DETAILS = ("full", "tokens", "summary")


def ledger(
    model: Model,
    inputs: Inputs,
    *,
    completion: Text | None = None,
    positions: Positions | None = None,
    targets: TargetTokens | None = None,
    gauge: str = "centered",
    foils: Foils | None = None,
    detail: str = "full",
    include_value_bias: bool = False,
) -> xr.Dataset:
    """The exact accounting of each target's logit (METHODS.md 2), in logits.

    embed + Σ ffn + Σ value_bias + Σ direct + remainder = logit, `direct` being Eq. 1 of Saliency-R1
    term by term and `logit` the model's own output. What a row cannot see is exactly 0.

    Args:
        model: a `VLM`, or a Hugging Face model (LoRA-wrapped too).
        inputs: a `Sample`, or the processor's output for one sequence.
        completion: teacher-force this `Completion`, or text, instead of the sample's own text.
        positions: rows whose next token to explain, instead of all of thinking and answer.
        targets: token ids or, with a `VLM`, texts of one token each; one per position.
        gauge: "centered" (above the vocabulary's mean), "raw" or "contrast" (above foils).
        foils: for the contrast gauge, which needs them: one token per target, given likewise, of
            which None is the likeliest other token at its row; or "runner-up", that at every row.
        detail: "full", direct by (target, layer, head, source); "tokens", by (target, source)
            and by (target, layer, role); "summary", the latter alone.
        include_value_bias: spread the value bias over the sources as the release of Saliency-R1
            does; it credits attention sinks.

    Raises:
        ValueError: bad inputs, positions, gauge or detail, each with what was expected.
    """
    check_detail(detail)
    prefilled = asked(
        model,
        inputs,
        completion=completion,
        positions=positions,
        targets=targets,
        gauge=gauge,
        foils=foils,
    )
    query, spread = prefilled.query, include_value_bias
    with torch.no_grad(), undisturbed(query.model):
        chunks = []
        for part in target_chunks(query, n_variants=1):
            played = replay(query.model, prefilled.context, query.rows[part])
            chunks.append(account(prefilled, part, played, detail, spread))
    return labelled(prefilled, chunks, detail, spread)


def ledgers_of(
    all_prefilled: list[Asked], batch: Prefills, settings: list[dict]
) -> list[xr.Dataset]:
    """`ledger` of several sequences out of one replay; settings by the names of its arguments."""
    rows = [one.query.rows for one in all_prefilled]
    all_played = replays(all_prefilled[0].query.model, batch, rows)
    datasets = []
    for prefilled, played, own in zip(all_prefilled, all_played, settings, strict=True):
        all_targets = torch.arange(len(prefilled.query.rows), device=prefilled.query.rows.device)
        how = own["detail"], own["include_value_bias"]
        datasets.append(labelled(prefilled, [account(prefilled, all_targets, played, *how)], *how))
    return datasets


def check_detail(detail: str) -> None:
    """Raises ValueError for an unknown detail."""
    if detail not in DETAILS:
        raise ValueError(f"expected a detail of {DETAILS}, got {detail!r}")


def account(
    prefilled: Asked,
    part: Int[Tensor, " part"],
    played: Replay,
    detail: str,
    include_value_bias: bool,
) -> dict:
    """Parts of some targets' logits, from the replay of their rows: name -> (dims, tensor)."""
    query, context = prefilled.query, prefilled.context
    rows = query.rows[part]
    readout = read_out(query.parts, prefilled.gauge_rows[part], played.final[0])
    layers = [
        _layer(readout, context, played, rows, n, include_value_bias)
        for n in range(query.parts.n_layers)
    ]
    direct, value_bias, ffn = (list(column) for column in zip(*layers, strict=True))
    entered = context.levels[:, rows].to(readout.vectors.dtype).sum(dim=0)
    embed = project(readout.vectors, entered)
    by_source = [one.sum(dim=1) for one in direct]
    by_role = _by_role(query, torch.stack(by_source, dim=1))
    value_bias, ffn = torch.stack(value_bias, dim=1), torch.stack(ffn, dim=1)
    attention = by_role.sum(dim=-1) + value_bias.sum(dim=-1)
    terms = {
        "embed": (("target",), embed),
        "ffn": (("target", "layer"), ffn),
        "value_bias": (("target", "layer", "head"), value_bias),
        "direct_by_layer": (("target", "layer", "role"), by_role),
        "magnitude": (("target",), embed.abs() + (ffn.abs() + attention.abs()).sum(dim=1)),
        "parts_sum": (("target",), embed + (ffn + attention).sum(dim=1)),
        "replayed": (("target",), project(readout.vectors, played.final[0].to(embed.dtype))),
    }
    if detail == "full":
        terms["direct"] = (("target", "layer", "head", "source"), torch.stack(direct, dim=1))
    if detail == "tokens":
        terms["direct"] = (("target", "source"), sum(by_source))
    return terms


def labelled(
    prefilled: Asked, chunks: list[dict], detail: str, include_value_bias: bool
) -> xr.Dataset:
    """The ledger out of its parts, beside the model's own logit."""
    query, context = prefilled.query, prefilled.context
    terms = {name: joined([chunk[name][1] for chunk in chunks]) for name in chunks[0]}
    dims = {name: pair[0] for name, pair in chunks[0].items()}
    logit = gauge_logits(context.logits, query.targets, prefilled.gauge, prefilled.foils)
    log_probability = context.logits.to(logit.dtype).log_softmax(dim=-1)
    replayed, parts_sum = terms.pop("replayed"), terms.pop("parts_sum")
    terms["logit"] = logit
    terms["remainder"] = logit - parts_sum
    if are_sums_checked():
        check_remainder(terms["remainder"], terms["magnitude"], context.logits)
    terms["replay_drift"] = logit - replayed
    terms["log_probability"] = log_probability.gather(1, query.targets[:, None])[:, 0]
    if prefilled.foils is not None:
        terms["foil_token_id"] = prefilled.foils
    variables = {
        name: (dims.get(name, ("target",)), as_array(value)) for name, value in terms.items()
    }
    dataset = xr.Dataset(
        variables, coords=coordinates(query, context if detail != "summary" else None)
    )
    attributes = {"detail": detail, "include_value_bias": str(include_value_bias)}
    return finished(
        query, dataset.assign_coords(role=list(ROLES)), {"gauge": prefilled.gauge} | attributes
    )


def check_remainder(
    remainder: Float[Tensor, " target"],
    magnitude: Float[Tensor, " target"],
    logits: Float[Tensor, "target vocabulary"],
) -> None:
    """Raises ValueError where the parts of a logit do not sum to the model's own.

    The bound is the dtype's, of a target's own magnitude; besides it may be off by what its
    logits, in whichever gauge, are rounded by. In half precision states are rounded at the scale of
    all targets, and a target with next to no parts of its own is held against the largest.

    Args:
        remainder: the model's logit minus the sum of its parts.
        magnitude: Σ of the parts' absolute values.
        logits: the model's own, in its dtype.
    """
    numbers, bound = torch.finfo(logits.dtype), BOUNDS[str(logits.dtype)[6:]]
    is_half = numbers.bits == 16
    scale = magnitude.max().expand_as(magnitude) if is_half else magnitude
    # transformers computes norms in float32 at best, in a model of float64 too.
    eps = max(numbers.eps, torch.finfo(torch.float32).eps)
    rounded = 2 * eps * logits.abs().amax(dim=-1).to(remainder.dtype)
    excess = (remainder.abs() - rounded).clamp(min=0)
    is_within = excess <= bound * scale
    if not bool(is_within.all()):
        error = float((excess / scale)[~is_within].max())
        raise ValueError(
            f"expected parts that sum to the model's own logit, got a remainder of {error:.2g} of "
            f"their absolute sum (bound {bound:g}); is the model changed by hooks, an adapter that "
            "depends on the text, or another attention than its config says?"
        )


def _layer(
    readout: Readout, context, played, rows, layer: int, include_value_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """direct (target, head, source), value_bias (target, head) and ffn (target) of one layer."""
    folded, bias = readout.folded[layer], readout.biases[layer]
    weights = played.shares(layer)[0]
    own = played.own_values[layer][0].to(folded.dtype) - bias
    direct = direct_terms(folded, readout.values(context, layer), own, weights, rows)
    value_bias = bias_scores(folded, bias)
    # A bias of the output projection (lora_bias) belongs to no head: each gets an equal share.
    value_bias = value_bias + readout.constants[layer][:, None] / value_bias.shape[1]
    if include_value_bias:
        direct = direct + weights * value_bias[..., None]
        value_bias = torch.zeros_like(value_bias)
    return direct, value_bias, project(readout.vectors, played.ffn[layer][0].to(folded.dtype))


def _by_role(
    query: Query, direct: Float[Tensor, "target layer source"]
) -> Float[Tensor, "target layer role"]:
    role = np.array([ROLES.index(r) for r in query.tokens.role])
    members = np.eye(len(ROLES))[role]
    return direct @ torch.from_numpy(members).to(direct)
