"""Parts sum to the whole, every part by its own formula (METHODS.md 6, oracles 1, 5, 7 and 9)."""

import numpy as np
import torch
from torch import Tensor, nn

from interp import extract
from interp.readout import gauge_rows
from interp.references import references
from interp.validate.case import Case, Finding, by_layer, relative

QUADRATURE = 1e-2  # what eight Gauss-Legendre nodes may miss of a joint cut, of the absolute parts


def ledger_sums(case: Case) -> list[Finding]:
    """The parts of each logit against the model's own, in every gauge."""
    findings = []
    for gauge, foils in (("raw", None), ("centered", None), ("contrast", "runner-up")):
        ds = extract.ledger(
            case.vlm, case.sample, gauge=gauge, foils=foils, detail="summary", **case.asked
        )
        error = np.abs(ds["remainder"] / ds["magnitude"]).max()
        findings.append(
            Finding(f"ledger sums to the model's logit ({gauge})", float(error), case.bound)
        )
    return findings


def stream_sums(case: Case) -> list[Finding]:
    """resid_pre + attn_out = resid_mid, + ffn_out = resid_post, = the next layer's resid_pre."""
    stream = {name: value.double() for name, value in case.stream.items()}
    limit = {"float64": 1e-12, "float32": 1e-6}.get(str(case.query.model.dtype)[6:], 2e-2)
    pre, post = stream["resid_pre"], stream["resid_post"]
    gaps = [
        torch.stack(
            [
                pre[n] + stream["attn_out"][n] - stream["resid_mid"][n],
                stream["resid_mid"][n] + stream["ffn_out"][n] - post[n],
                post[n] - pre[n + 1] if n + 1 < len(pre) else torch.zeros_like(post[n]),
            ]
        )
        for n in range(len(pre))
    ]
    errors = [relative(gap, to=post[n]) for n, gap in enumerate(gaps)]
    return [by_layer("residual stream adds up", errors, limit)]


def effect_sums(case: Case) -> list[Finding]:
    """The paths of edge effects, node effects and coalitions against the total effects."""
    findings = []
    vlm, sample, asked = case.vlm, case.sample, case.asked
    for mode in ("zero", "mean", "mask"):
        fx = extract.effects(vlm, sample, mode=mode, **asked)
        gap = np.abs(fx["effect"].sum("path") - fx["total"]).max("source_set")
        findings.append(_of_parts(f"edge effects sum to their total ({mode})", gap, case))
    refs = references(vlm, sample, kinds=("blur",))
    nodes = extract.node_effects(vlm, sample, references=refs, **asked)
    gap = np.abs(nodes["effect"].sum("path") - nodes["total"]).max(["source_set", "reference"])
    findings.append(_of_parts("node effects sum to their total", gap, case))
    shares = extract.shapley(vlm, sample, references=refs, sources=["image"], **asked)
    shares = shares.squeeze(["source_set", "reference"])
    gap = np.abs(shares["shapley"].sum("path_class") - shares["total"]).max("norm")
    findings.append(_of_parts("Shapley values sum to the total", gap, case))
    frozen = shares["shapley"].sel(norm="frozen", path_class="direct write", drop=True)
    gap = np.abs(frozen - shares["direct_write"].sum("write"))
    findings.append(
        _of_parts("Shapley value of the direct write is the change of Eq. 1's sum", gap, case)
    )
    return findings


def first_order_sums(case: Case) -> list[Finding]:
    """The integrated map against the joint cut, and one backward pass against one per target."""
    findings = []
    asked = case.asked
    together = extract.first_order(case.vlm, case.sample, **asked)
    gap = np.abs(together["completeness_error"])
    found = _of_parts("first-order map sums to the joint cut (quadrature)", gap, case)
    findings.append(Finding(found.check, found.error, max(QUADRATURE, case.bound)))
    last = {name: values[-1:] for name, values in asked.items()}
    alone = extract.first_order(case.vlm, case.sample, **last)["first_order"].values[0]
    gap = np.abs(together["first_order"].values[-1] - alone).max() / case.magnitude[-1]
    findings.append(Finding("one backward pass equals one per target", float(gap), case.bound))
    return findings


def batch_sums(cases: list[Case]) -> list[Finding]:
    """Samples in one padded batch against each alone."""
    pairs = [(case.sample, case.asked) for case in cases]
    together = extract.each("ledger", cases[0].vlm, pairs, max_memory=2**60)
    errors = [
        np.abs(one["direct"].values - case.ledger["direct"].values).sum(axis=(1, 2, 3))
        / np.abs(case.ledger["direct"].values).sum(axis=(1, 2, 3))
        for one, case in zip(together, cases, strict=True)
    ]
    return [
        Finding(
            "padding and batching change nothing",
            float(np.max(np.concatenate(errors))),
            cases[0].bound,
        )
    ]


class _Shifted(nn.Module):
    """An output embedding with a constant vector added to every row."""

    def __init__(self, inner: nn.Module, shift: Tensor):
        super().__init__()
        self.inner, self.shift = inner, shift
        self.in_features, self.out_features = inner.in_features, inner.out_features

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + (x @ self.shift)[..., None]


def gauge_invariance(case: Case) -> list[Finding]:
    """A constant added to every row of the output embedding is nothing to the centered gauge."""
    head, targets = case.query.where.output_embedding, case.query.targets
    rows = gauge_rows(head, targets, "centered")
    generator = torch.Generator().manual_seed(0)
    shift = torch.randn(head.in_features, generator=generator).to(next(head.parameters()))
    shift = shift * rows.std().to(shift)
    moved = gauge_rows(_Shifted(head, shift), targets, "centered")
    return [
        Finding("centered gauge ignores a constant row", relative(moved - rows, rows), case.bound)
    ]


def _of_parts(check: str, gap, case: Case) -> Finding:
    return Finding(check, float(np.max(gap.values / case.magnitude)), case.bound)
