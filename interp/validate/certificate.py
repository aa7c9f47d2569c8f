"""The certificate: every oracle's error and bound on one loaded model."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite

import xarray as xr
from peft import PeftModel

import interp
from interp.labels import BOUNDS
from interp.model import VLM, fingerprint, parts
from interp.sample import Sample
from interp.validate import forwards, naive, state, sums
from interp.validate.case import Case, Finding, make_case
from interp.validate.witness import LARGEST, copied, merged_equals_unmerged, testimony

PER_SAMPLE = (
    sums.ledger_sums, sums.stream_sums, sums.effect_sums, sums.first_order_sums,
    sums.gauge_invariance, forwards.rows_of_the_forward, forwards.interventions,
    naive.naive_terms, state.liveness, state.unchanged,
)  # fmt: skip
IDENTITY = ("model_hash", "adapter_hash", "dtype", "attn_implementation")


@dataclass(frozen=True)
class Certificate:
    """What was checked on which model."""

    checks: xr.Dataset
    """error, bound, is_passed and layer by check; which model, data and versions as attributes."""

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
        """Whether it is about this very model as it now is: weights, adapter, dtype, attention."""
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
        )


def certify(
    vlm: VLM, samples: Iterable[Sample] | None = None, *, witness: bool | None = None
) -> Certificate:
    """Runs the oracles of METHODS.md 6 on a loaded model, its dtype, attention and adapter.

    Errors are relative to the sum of absolute parts and their bounds those of the dtype, unless the
    check's name says otherwise; of several samples the worst error is kept.

    Args:
        vlm: the model as it will be used.
        samples: some with text and one image each; three embedded scenes by default.
        witness: whether to ask TransformerLens, which needs a copy of the model and the per-head
            results of a whole sequence; by default for less than two billion parameters.

    Raises:
        NotCertified: a check failed, naming check, layer, error and bound; it is a ValueError and
            carries the certificate.
        ValueError: what extraction raises for a model or sample that it cannot read.
    """
    samples = list(samples or interp.load_samples("digits", split="test", limit=3))
    bound = BOUNDS[_identity(vlm.model)["dtype"]]
    cases = [make_case(vlm, sample, bound) for sample in samples]
    found = [one for case in cases for check in PER_SAMPLE for one in check(case)]
    found += sums.batch_sums(cases)
    if witness is None:
        witness = sum(p.numel() for p in vlm.model.parameters()) < LARGEST
    if witness:
        found += _against_a_copy(cases)
    certificate = Certificate(_labelled(vlm, found, cases))
    if not certificate.is_passed:
        raise NotCertified(certificate)
    return certificate


def _against_a_copy(cases: list[Case]) -> list[Finding]:
    """What needs a copy of the model: a merged adapter, and TransformerLens."""
    vlm = cases[0].vlm
    model = copied(vlm)
    merged = merged_equals_unmerged(cases, model) if isinstance(vlm.model, PeftModel) else ()
    return [*merged, *testimony(cases, model)]


def _identity(model) -> dict[str, str]:
    """Which model this is, and how it runs."""
    return {
        "model_hash": fingerprint(model),
        "adapter_hash": fingerprint(model, only="lora_"),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attn_implementation": parts(model).attn_implementation,
    }


def _labelled(vlm: VLM, found: list[Finding], cases: list[Case]) -> xr.Dataset:
    """The worst finding of every check, in the order of the checks."""
    worst: dict[str, Finding] = {}
    for one in found:
        known = worst.get(one.check)
        # Written so that an error that is not a number is the worst of all.
        if known is None or (known.is_passed and not one.error <= known.error):
            worst[one.check] = one
    columns = {
        name: ("check", [getattr(one, name) for one in worst.values()])
        for name in ("error", "bound", "layer", "is_passed")
    }
    attributes = _provenance(cases[0]) | _identity(vlm.model)
    attributes |= {"model": vlm.name, "adapter": vlm.adapter, "n_samples": len(cases)}
    return xr.Dataset(columns, coords={"check": list(worst)}, attrs=attributes)


def _provenance(case: Case) -> dict[str, str]:
    """Versions, from the provenance of a ledger."""
    names = ("torch", "transformers", "nnsight", "xarray", "data")
    return {name: case.ledger.attrs[name] for name in names}
