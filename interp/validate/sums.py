"""Parts sum to the whole, every part by its own formula (METHODS.md 6, oracles 1, 5 and 7)."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from interp import extract
from interp.algebra.readout import gauge_rows, read_out
from interp.capture.replay import replay
from interp.extract.attention_maps import through_thinking
from interp.extract.prefilled import asked
from interp.extract.question import ask
from interp.extract.references import references
from interp.model.linear import float_dtype, sizes
from interp.model.state import undisturbed
from interp.validate.case import Case, Finding, by_layer, defined, of_sum, relative
from interp.vocabulary import EDGE_MODES


def ledger_sums(case: Case) -> list[Finding]:
    """The parts of each logit against the model's own, in every gauge."""
    findings = []
    for gauge, foils in (("raw", None), ("centered", None), ("contrast", "runner-up")):
        ds = extract.ledger(
            case.vlm, case.sample, gauge=gauge, foils=foils, detail="summary", **case.asked
        )
        error = np.max(np.abs(ds["remainder"].values / ds["magnitude"].values))
        findings.append(
            Finding(f"ledger sums to the model's logit ({gauge})", float(error), case.logit_bound)
        )
    spread = extract.ledger(case.vlm, case.sample, include_value_bias=True, **case.asked)
    heads = case.ledger["direct"].values.sum(axis=3) + case.ledger["value_bias"].values
    gap = spread["direct"].values.sum(axis=3) - heads
    error = float(np.max(of_sum(gap, heads, axis=(1, 2))))
    findings.append(Finding("value biases spread over sources add up", error, case.bound))
    return findings


def stream_sums(case: Case) -> list[Finding]:
    """resid_pre + attn_out = resid_mid, + ffn_out = resid_post, + injected = the next resid_pre."""
    stream = {name: value.double() for name, value in case.stream.items()}
    limit = {"float64": 1e-12, "float32": 1e-6}.get(str(case.query.model.dtype)[6:], 2e-2)
    pre, mid, post = stream["resid_pre"], stream["resid_mid"], stream["resid_post"]
    attention, ffn = stream["attn_out"], stream["ffn_out"]
    injected = torch.zeros_like(post)
    injected[: len(stream["injected"])] = stream["injected"]
    errors = [
        np.max(  # which keeps what is not a number
            [
                relative(pre[n] + attention[n] - mid[n], pre[n], attention[n]),
                relative(mid[n] + ffn[n] - post[n], mid[n], ffn[n]),
                relative(post[n] + injected[n] - after, post[n], injected[n]),
            ]
        )
        for n, after in enumerate([*pre[1:], post[-1] + injected[-1]])
    ]
    return [by_layer("residual stream adds up", errors, limit)]


def effect_sums(case: Case) -> list[Finding]:
    """The paths of edge and node effects against the total effects."""
    findings = []
    vlm, sample, where = case.vlm, case.sample, case.asked
    for mode in EDGE_MODES:
        fx = defined(extract.effects(vlm, sample, mode=mode, **where))
        gap = fx["effect"].sum("path", skipna=False) - fx["total"]
        findings.append(case.compare(f"edge effects sum to their total ({mode})", gap, fx["total"]))
    refs = references(vlm, sample, kinds=("blur",))
    nodes = defined(extract.node_effects(vlm, sample, references=refs, **where))
    gap = nodes["effect"].sum("path", skipna=False) - nodes["total"]
    findings.append(case.compare("node effects sum to their total", gap, nodes["total"]))
    mediated = nodes["effect"].sel(path="mediated", drop=True)
    gap = nodes["mediated_by_role"].sum("role", skipna=False) - mediated
    findings.append(case.compare("mediated effects sum over roles", gap, mediated))
    return findings


def origin_sums(case: Case) -> list[Finding]:
    """Direct terms against what they are made of at the source."""
    ds = extract.origins(case.vlm, case.sample, **case.asked)
    whole = case.ledger["direct"].values.sum(axis=(1, 2))
    errors = of_sum(ds["origin_remainder"].values, whole, axis=1)
    return [Finding("origins sum to the direct terms", float(np.max(errors)), case.vector_bound)]


@torch.no_grad()
def hop_sums(case: Case) -> list[Finding]:
    """Two hops through the thinking, over all tokens, against what its direct terms are made of.

    A text without thinking has none.
    """
    case = case.of([-1])
    query, where = case.query, case.asked
    roles = np.array(query.tokens.role[: int(query.rows[0])])
    thinking = np.flatnonzero(roles == "thinking")
    if len(thinking) == 0:
        return []
    made = asked(case.vlm, case.sample, gauge="centered", foils=None, completion=None, **where)
    with undisturbed(query.model):
        played = replay(query.model, made.context, made.query.rows)
        readout = read_out(query.parts, made.gauge_rows, played.final[0])
        scores = through_thinking(made, played, readout, ["two_hop"], "paper")["two_hop"][0]
    ds = extract.origins(case.vlm, case.sample, **where)
    origins = ds["direct_by_origin"].isel(target=0, source=thinking).sum("source")
    gap = float(scores.sum()) - float(origins.sel(origin="attention"))
    error = abs(gap) / float(np.abs(origins).sum())
    return [Finding("two hops sum to the attention origins", error, case.vector_bound)]


def batch_sums(case: Case) -> list[Finding]:
    """The sample in one padded batch with a longer one, against alone."""
    longer = replace(case.sample, question=f"{case.sample.question} {case.sample.question}")
    last = ask(case.vlm, longer).rows[-1:].tolist()
    pairs = [(case.sample, case.asked), (longer, {"positions": last})]
    whole = case.ledger["direct"].values
    together = next(extract.each("ledger", case.vlm, pairs, max_memory=2**60))
    error = np.max(of_sum(together["direct"].values - whole, whole, axis=(1, 2, 3)))
    findings = [Finding("padding and batching change no ledger", float(error), case.vector_bound)]
    together = next(extract.each("effects", case.vlm, pairs, max_memory=2**60, mode="mean"))
    together = defined(together)
    alone = defined(extract.effects(case.vlm, case.sample, mode="mean", **case.asked))
    gap = together["effect"].values - alone["effect"].values
    findings.append(case.compare("padding and batching change no effect", gap, alone["effect"]))
    return findings


class _Shifted(nn.Module):
    """An output embedding with a constant vector added to every row."""

    def __init__(self, inner: nn.Module, shift: Tensor):
        super().__init__()
        self.inner, self.shift = inner, shift
        self.in_features, self.out_features = sizes(inner)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + (x @ self.shift)[..., None]


def gauge_invariance(case: Case) -> list[Finding]:
    """A constant added to every row of the output embedding is nothing to the centered gauge."""
    head, targets = case.query.parts.output_embedding, case.query.targets
    rows = gauge_rows(head, targets, "centered")
    generator = torch.Generator().manual_seed(0)
    shift = torch.randn(sizes(head)[0], generator=generator)
    shift = shift.to(rows.device, float_dtype(head))
    shift = shift * rows.std().to(shift)
    moved = gauge_rows(_Shifted(head, shift), targets, "centered")
    return [
        Finding("centered gauge ignores a constant row", relative(moved - rows, rows), case.bound)
    ]
