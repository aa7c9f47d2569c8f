"""Maps and shares against what they have to sum to (METHODS.md 6, oracle 9)."""

import numpy as np
import torch

from interp import extract
from interp.algebra import shapley
from interp.algebra.effects import cut_masks
from interp.algebra.ledger import project
from interp.algebra.readout import gauge_rows, read_out
from interp.capture.prefill import prefill, prefill_with
from interp.capture.replay import replay
from interp.capture.slots import reading
from interp.extract.references import references
from interp.extract.source_sets import source_sets
from interp.validate.case import Case, Finding, of_sum

NODES = (16, 64, 256)  # of Gauss and Legendre; the next where one is not enough
QUADRATURE = 1e-2  # of the map's absolute values, that they may miss
N_PATCHES = 3


def first_order_sums(case: Case) -> list[Finding]:
    """The integrated map against the joint cut, and one backward pass against one per target.

    The cut's total is a difference of two logits, which are rounded at the logits' scale; the
    quadrature errs at the map's. Where experts are switched along the cut the map misses what that
    does, and is not held against it.
    """
    for n_nodes in NODES:
        dataset = extract.first_order(case.vlm, case.sample, n_nodes=n_nodes, **case.asked)
        maps = dataset["first_order"].values[..., 0]
        errors = np.abs(dataset["completeness_error"].values) / case.magnitude
        size = np.abs(maps).sum(axis=(1, 2)) / case.magnitude
        bounds = case.effect_bound + QUADRATURE * size
        worst = int(np.argmax(errors / bounds))
        if errors[worst] <= bounds[worst] or case.query.parts.has_experts:
            break  # otherwise more nodes: a map that is right converges
    whole = [
        Finding(
            "first-order map sums to the joint cut",
            float(errors[worst]),
            float(bounds[worst]),
            signal=float(size.max()),
        )
    ]
    findings = [] if case.query.parts.has_experts else whole
    last = {name: values[-1:] for name, values in case.asked.items()}
    last_dataset = extract.first_order(case.vlm, case.sample, n_nodes=n_nodes, **last)
    gap = maps[-1] - last_dataset["first_order"].values[0, ..., 0]
    error = float(of_sum(gap, maps[-1], (0, 1)))
    name = "one backward pass equals one per target"
    return [*findings, Finding(name, error, case.vector_bound)]


def patch_sums(case: Case) -> list[Finding]:
    """Patch maps of one target against edge effects of single tokens and the node effect of all."""
    vlm, sample, case = case.vlm, case.sample, case.of([-1])
    edge = extract.patch_effects(vlm, sample, **case.asked)
    strongest = np.argsort(-np.abs(edge["total"].values[0]))[:N_PATCHES].tolist()
    single_patches = {f"patch {row}": [row] for row in strongest}
    fx = extract.effects(vlm, sample, sources=single_patches, **case.asked)
    edge_map = edge["effect"].values[:, strongest]
    gap = edge_map - fx["effect"].values
    findings = [case.compare("edge map equals the effects of its patches", gap, to=edge_map)]
    refs = references(vlm, sample, kinds=("blur",))
    slot = extract.patch_effects(vlm, sample, form="slot", reference=refs["blur"], **case.asked)
    nodes = extract.node_effects(vlm, sample, references=refs, sources=["image"], **case.asked)
    mediated = nodes["effect"].sel(path="mediated", drop=True).squeeze(["source_set", "reference"])
    unmediated = nodes["total"].squeeze(["source_set", "reference"]) - mediated
    gap = slot["joint"].values - unmediated.values
    findings.append(case.compare("slots of all patches equal the node effect", gap, unmediated))
    return findings


@torch.no_grad()
def shapley_sums(case: Case) -> list[Finding]:
    """The coalitions against node effects, and their direct write against the ledger's Eq. 1."""
    vlm, sample, query = case.vlm, case.sample, case.query
    refs = references(vlm, sample, kinds=("blur",))
    options = {"references": refs, "sources": ["image"], **case.asked}
    shares = extract.shapley(vlm, sample, **options).sel(norm="live")
    nodes = extract.node_effects(vlm, sample, **options)
    gap = shares["total"].values - nodes["total"].values
    findings = [case.compare("Shapley values sum to the node effect", gap, to=nodes["total"])]

    context = prefill(query.model, query.batch, query.rows)
    _, members = source_sets(query, ["image"], context.is_sink)
    runs = context, prefill_with(query.model, context, *_blurred(members[0], refs))
    before = cut_masks(members, query.rows, context.is_visible)[0]
    variants = reading(shapley.coalition_runs(members[0]), len(query.rows))
    played = replay(query.model, context, query.rows, variants, others=runs[1:])
    rows = gauge_rows(query.parts.output_embedding, query.targets, "centered")
    readout = read_out(query.parts, rows, played.final[-1])
    written = shapley.writes(query.parts, readout.biases, runs, played, before)
    direct_write = project(readout.vectors, written[1, 1, 1]).cpu().numpy()
    terms = case.ledger["direct"].values.sum(axis=(1, 2))
    ledger_sum = (terms * before.cpu().numpy()).sum(axis=1)
    findings.append(
        case.compare(
            "clean direct write equals Eq. 1's sum", direct_write - ledger_sum, to=ledger_sum
        )
    )
    return findings


def _blurred(is_image, refs) -> tuple:
    return is_image.nonzero()[:, 0], refs["blur"].content
