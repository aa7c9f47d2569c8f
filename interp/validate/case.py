"""A case for every oracle: some targets of one sample of the model that is to be certified."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from interp import extract
from interp.capture.replay import residual
from interp.data.sample import Sample
from interp.extract.question import Query, ask
from interp.model.vlm import VLM

N_TARGETS = 6


@dataclass(frozen=True)
class Finding:
    """One check's error and bound."""

    check: str
    error: float
    bound: float
    layer: int = -1
    """The first layer past the bound, or the one with the largest error; -1 without layers."""
    signal: float = 1.0
    """The largest number compared, on the error's scale: up to the bound, a result of nothing but
    zeros would have passed, and the check says nothing."""

    @property
    def is_passed(self) -> bool:
        """Within the bound; an error that is not a number is not."""
        return self.error <= self.bound

    @property
    def excess(self) -> float:
        """The error in units of its bound; a bound of 0 counts as the smallest number above it."""
        return self.error / max(self.bound, np.finfo(float).tiny)


@dataclass(frozen=True)
class Case:
    """A sample, some of its targets, and what the extractor says of them."""

    vlm: VLM
    sample: Sample
    query: Query
    ledger: xr.Dataset
    """In full, in the centered gauge."""
    stream: dict[str, Float[Tensor, "layer token d_model"]]
    """The traced residual stream of all tokens."""
    bound: float
    """Bound of the model's dtype, relative to the sum of absolute parts."""
    logit_bound: float
    """Bound for logits, relative to the same. At least that of the dtype, and
    above what rounding alone moves in a target's logit."""
    effect_bound: float
    """Bound for effects, relative to the same. An effect is a difference of two logits: at least
    that of the dtype, and above what rounding alone moves in both."""
    vector_bound: float
    """Bound for what is compared element by element: outputs of layers, attention rows, terms. At
    least that of the dtype, and above what rounding alone moves at the targets' rows."""
    token_bound: float
    """The same for what is compared at every token."""

    @property
    def asked(self) -> dict:
        """The targets, as extractions take them."""
        return {"positions": self.query.rows.tolist(), "targets": self.query.targets.tolist()}

    @property
    def magnitude(self) -> Float[np.ndarray, " target"]:
        """Sum of absolute parts of each target's logit."""
        return self.ledger["magnitude"].values.astype(np.float64)

    def of(self, chosen: Sequence[int]) -> "Case":
        """The same case with some of its targets."""
        asked = {name: [values[k] for k in chosen] for name, values in self.asked.items()}
        ledger = self.ledger.isel(target=list(chosen))
        return replace(self, query=ask(self.vlm, self.sample, **asked), ledger=ledger)

    def compare(self, check: str, gap, to) -> Finding:
        """A difference and what it is relative to, both in logits with targets first.

        Relative to each target's magnitude, because logits and their effects are rounded at that
        scale; the finding's `signal` says how large the effects themselves are on it.
        """
        by_target = [
            np.abs(np.asarray(one, dtype=np.float64)).reshape(len(self.magnitude), -1).max(axis=1)
            for one in (gap, to)
        ]
        error, signal = (float(np.max(one / self.magnitude)) for one in by_target)
        return Finding(check, error, self.effect_bound, signal=signal)


def make_case(vlm: VLM, sample: Sample, bound: float) -> Case:
    """Some of the sample's targets, evenly spaced, the last one among them."""
    every = ask(vlm, sample)
    chosen = np.unique(np.linspace(0, len(every.rows) - 1, N_TARGETS).round().astype(int))
    rows, targets = every.rows[chosen].tolist(), every.targets[chosen].tolist()
    query = ask(vlm, sample, positions=rows, targets=targets)
    tokens = torch.arange(len(query.tokens.ids), device=query.rows.device)
    return Case(
        vlm=vlm,
        sample=sample,
        query=query,
        ledger=extract.ledger(vlm, sample, positions=rows, targets=targets),
        stream=residual(query.model, query.batch, tokens),
        bound=bound,
        logit_bound=bound,
        effect_bound=bound,
        vector_bound=bound,
        token_bound=bound,
    )


def defined(dataset: xr.Dataset) -> xr.Dataset:
    """Effects with 0 where they are not defined; NaN of another cause stays, and fails a check."""
    return dataset.where(dataset["is_defined"], 0)


def by_layer(check: str, errors: Sequence[float], bound: float) -> Finding:
    """The first layer whose error passes the bound; without one, the layer with the largest."""
    errors = [float(one) for one in errors]
    past = [layer for layer, error in enumerate(errors) if not error <= bound]
    layer = past[0] if past else int(np.argmax(errors))
    return Finding(check, errors[layer], bound, layer)


def relative(difference: Tensor, *to: Tensor) -> float:
    """The worst row's largest absolute difference, over the sum of its largest absolute parts.

    Row by row, so that a few rows of massive activation do not hide what is wrong with the others.
    """
    scale = sum(part.detach().double().abs().amax(dim=-1) for part in to)
    gap = difference.detach().double().abs().amax(dim=-1)
    return (gap / scale.clamp(min=torch.finfo(scale.dtype).tiny)).max().item()


def of_sum(gap, whole, axis) -> Float[np.ndarray, "..."]:
    """Σ|gap| / Σ|whole| over some axes; 0 where there is nothing on either side."""
    gap, whole = np.abs(np.asarray(gap)).sum(axis=axis), np.abs(np.asarray(whole)).sum(axis=axis)
    return np.asarray(gap / np.maximum(whole, np.finfo(np.float64).tiny))
