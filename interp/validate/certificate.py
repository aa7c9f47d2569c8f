"""The certificate: every oracle's error and bound on one loaded model."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from math import isfinite

import numpy as np
import xarray as xr
from peft import PeftModel

import interp
from interp.capture.checks import sums_unchecked
from interp.data.sample import Sample
from interp.extract.sharing import sharing
from interp.model import families
from interp.model.adapters import NotMerged
from interp.model.identity import fingerprint
from interp.model.state import undisturbed
from interp.model.vlm import VLM
from interp.validate import forwards, interventions, naive, paths, sums, traces
from interp.validate import witness as other
from interp.validate.case import Case, Finding, make_case
from interp.validate.rounding import rounding
from interp.vocabulary import BOUNDS

PER_SAMPLE = (
    sums.ledger_sums,
    sums.stream_sums,
    sums.effect_sums,
    sums.origin_sums,
    sums.hop_sums,
    sums.batch_sums,
    sums.gauge_invariance,
    paths.first_order_sums,
    paths.patch_sums,
    paths.shapley_sums,
    forwards.rows_of_the_forward,
    interventions.interventions,
    naive.naive_terms,
    traces.liveness,
    traces.unchanged,
)


@dataclass(frozen=True)
class Certificate:
    """The checks of one model, with their errors and bounds."""

    checks: xr.Dataset
    """error, bound, signal, layer and is_passed by check; which model, data and versions as
    attributes. `signal` is the largest number compared, on the error's scale: up to the bound, a
    result of nothing but zeros would have passed too."""

    @property
    def is_passed(self) -> bool:
        """Whether every check is within its bound."""
        return bool(self.checks["is_passed"].all())

    @property
    def failures(self) -> list[str]:
        """One line for each check that failed, naming the layer where there is one."""
        table = self.checks.to_dataframe()
        return [
            f"{name}{f', layer {row.layer}' if row.layer >= 0 else ''}: "
            f"error {row.error:.2g}, bound {row.bound:.2g}"
            for name, row in table[~table["is_passed"]].iterrows()
        ]

    def covers(self, model) -> bool:
        """Whether it is about this model as it now is: weights, adapter, dtype, attention.

        Weights are told by the hashes over all of them, as `model_hash` and `adapter_hash` of every
        dataset.
        """
        return all(self.checks.attrs[name] == value for name, value in _identity(model).items())

    def to_json(self) -> str:
        """Model, versions and the table of checks."""
        table = self.checks.to_dataframe().reset_index()
        table["error"] = [one if isfinite(one) else str(one) for one in table["error"]]
        found = {"is_passed": self.is_passed} | dict(self.checks.attrs)
        return json.dumps(found | {"checks": table.to_dict("records")}, indent=1) + "\n"

    def __str__(self) -> str:
        verdict = "passed" if self.is_passed else "NOT PASSED"
        return f"{verdict}\n{self.checks.to_dataframe().to_string(float_format='{:.2g}'.format)}"


class NotCertified(ValueError):
    """A check failed; the certificate says which."""

    def __init__(self, certificate: Certificate):
        self.certificate = certificate
        super().__init__(
            "expected an extractor that passes its oracles on this model, got "
            + "; ".join(certificate.failures)
            + "; trust no number of it, and look for hooks or patches on the layers named"
        )


def certify(
    vlm: VLM, samples: Iterable[Sample] | None = None, *, witness: bool | None = None
) -> Certificate:
    """Runs the oracles of METHODS.md 6 on a loaded model, its dtype, attention and adapter.

    What an error is relative to depends on the check: the sum of absolute parts of a logit, map or
    row of the residual stream. Bounds are those of the dtype, or a multiple of what rounding alone
    moves in this model where that is more (`interp.validate.rounding`); of several samples the
    worst error is kept.

    Args:
        vlm: the model as it will be used.
        samples: some with text and one image each; two embedded scenes by default.
        witness: whether to ask TransformerLens, which needs a copy of the model and the per-head
            results of a whole sequence; by default for less than two billion parameters, of a
            family that it knows.

    Raises:
        NotCertified: a check failed, naming check, layer, error and bound; it is a ValueError and
            carries the certificate.
        ValueError: no samples, no TransformerLens, or a family that it does not know, where it is
            to be asked, and what extraction raises for a model or sample that it cannot read.
    """
    if samples is None:
        samples = interp.load_samples("digits", split="test", limit=2)
    samples = list(samples)
    if not samples:
        raise ValueError("expected one or more samples to certify with, got none")
    has_witness = other.is_asked(vlm, witness)
    with undisturbed(vlm.model), sums_unchecked():
        bound = BOUNDS[_identity(vlm.model)["dtype"]]
        cases = [make_case(vlm, sample, bound) for sample in samples]
        findings, cases = map(list, zip(*[rounding(case) for case in cases], strict=True))
        findings += [one for case in cases for check in PER_SAMPLE for one in _asked(check, case)]
        asked = "not asked"
        try:
            if isinstance(vlm.model, PeftModel):
                findings += other.merged_equals_unmerged(cases)
            if has_witness:
                findings += other.testimony(cases)
                asked = f"TransformerLens {version('transformer-lens')}"
        except NotMerged as error:  # no copy without the adapter can be made; the rest stands
            asked = f"not asked: {error}"
        certificate = Certificate(_labelled(vlm, findings, cases, asked))
    if not certificate.is_passed:
        raise NotCertified(certificate)
    return certificate


def _asked(check: Callable, case: Case) -> list[Finding]:
    """A check's findings; its own calls share inputs and clean run, and none with another check."""
    with sharing():
        return check(case)


def _identity(model) -> dict[str, str]:
    """Which model this is, and how it runs."""
    return {
        "model_hash": fingerprint(model),
        "adapter_hash": fingerprint(model, adapter=True),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attn_implementation": families.parts(model).attn_implementation,
    }


def _labelled(vlm: VLM, findings: list[Finding], cases: list[Case], asked: str) -> xr.Dataset:
    """The worst finding of every check, in the order of the checks."""
    by_check: dict[str, list[Finding]] = {}
    for finding in findings:
        by_check.setdefault(finding.check, []).append(finding)
    # argmax takes an error that is not a number for the largest of all.
    worst = [same[np.argmax([one.excess for one in same])] for same in by_check.values()]
    columns = {
        name: ("check", [getattr(one, name) for one in worst])
        for name in ("error", "bound", "signal", "layer", "is_passed")
    }
    for name in ("error", "bound", "signal"):
        columns[name] = ("check", np.array(columns[name][1], dtype=float))
    attributes = _provenance(cases[0]) | _identity(vlm.model)
    attributes |= {"model": vlm.name, "adapter": vlm.adapter, "n_samples": len(cases)}
    if cases[0].query.parts.has_experts:
        attributes["left_out"] = "whole first-order maps: no gradient sees a change of experts"
    return xr.Dataset(
        columns, coords={"check": list(by_check)}, attrs=attributes | {"witness": asked}
    )


def _provenance(case: Case) -> dict[str, str]:
    """Versions, from the provenance of a ledger."""
    names = ("torch", "transformers", "nnsight", "xarray", "data")
    return {name: case.ledger.attrs[name] for name in names}
