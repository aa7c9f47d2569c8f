"""Calls that share inputs and runs give the numbers of calls that do not."""

import numpy as np
import pytest
import xarray as xr

import interp
from interp import extract
from interp.capture import prefill as prefilling
from interp.extract import replaced
from interp.extract.references import Pool
from interp.extract.sharing import sharing


@pytest.fixture(scope="module")
def scenes():
    return interp.load_samples("digits", split="test", limit=8)


@pytest.fixture(scope="module")
def cases(tiny, scenes):
    """A sample with boxes and a twin, its references, and two of its texts."""
    sample = scenes[6]
    references = extract.references(tiny, sample, pool=Pool(tiny, scenes))
    return sample, references, [None, tiny.answer(sample.image, "what is there?")]


def _all(vlm, sample, references, completion) -> list[xr.Dataset]:
    options = {"completion": completion}
    full = extract.ledger(vlm, sample, **options)
    last = {"positions": full["target_position"].values[-1:].tolist(), **options}
    return [
        full,
        extract.node_effects(vlm, sample, references=references, **options),
        extract.shapley(vlm, sample, references=references, **options),
        extract.origins(vlm, sample, **options),
        extract.effects(vlm, sample, **last),
        extract.patch_effects(vlm, sample, **last),
        extract.maps(vlm, sample, kinds=("direct", "effect"), only="answer", **options),
    ]


def test_shared_calls_give_the_same_and_make_fewer_forwards(tiny, cases, monkeypatch):
    sample, references, texts = cases
    calls, plain = [], prefilling._prefills
    monkeypatch.setattr(prefilling, "_prefills", lambda *args: calls.append(1) or plain(*args))
    alone = [one for text in texts for one in _all(tiny, sample, references, text)]
    n_alone = len(calls)
    with sharing():
        together = [one for text in texts for one in _all(tiny, sample, references, text)]
    for one, other in zip(alone, together, strict=True):
        xr.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    assert (n_alone, len(calls) - n_alone) == (14, 2)  # a clean run for each text


def test_rows_that_were_not_asked_for_before_are_computed(tiny, cases):
    sample, _, _ = cases
    full = extract.ledger(tiny, sample)
    rows = full["target_position"].values.tolist()
    with sharing():
        extract.ledger(tiny, sample, positions=rows[-1:])
        after = extract.ledger(tiny, sample)  # more rows than are there
        backwards = extract.ledger(tiny, sample, positions=rows[::-1])
    xr.testing.assert_allclose(after, full, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(backwards["logit"][::-1], full["logit"], atol=1e-4)


def test_long_reference_runs_are_not_kept(tiny, cases, monkeypatch):
    sample, references, _ = cases
    plain = extract.shapley(tiny, sample, references=references)
    monkeypatch.setattr(replaced, "KEPT_TOKENS", 0)
    calls, forward = [], replaced.prefills_with
    monkeypatch.setattr(replaced, "prefills_with", lambda *args: calls.append(1) or forward(*args))
    with sharing():
        for _ in range(2):
            found = extract.shapley(tiny, sample, references=references)
            xr.testing.assert_allclose(found, plain, rtol=1e-5, atol=1e-5)
    assert len(calls) >= 2  # made anew by the second call


def test_what_was_shared_is_forgotten(tiny, cases):
    """Behind the block a changed model gives its own numbers."""
    sample, _, _ = cases
    with sharing():
        before = extract.ledger(tiny, sample)["logit"].values
    weight = tiny.model.lm_head.weight
    kept = weight.detach().clone()
    try:
        weight.data.mul_(1.5)
        with sharing():
            after = extract.ledger(tiny, sample)["logit"].values
    finally:
        weight.data.copy_(kept)
    assert np.abs(after - before).min() > 1e-3


@pytest.mark.parametrize("name", ["shapley", "node_effects"])
def test_cases_together_give_what_each_gives_alone(tiny, cases, name, monkeypatch):
    sample, references, _ = cases
    rows = extract.ledger(tiny, sample)
    visual = np.flatnonzero(rows["source_role"] == "image").tolist()
    sources = {"all": visual, "some": visual[:4], "one": visual[-1:]}
    together = getattr(extract, name)(tiny, sample, references=references, sources=sources)
    for source, members in sources.items():
        for reference, content in references.items():
            alone = getattr(extract, name)(
                tiny, sample, references={reference: content}, sources={source: members}
            )
            found = together.sel(source_set=[source], reference=[reference])
            xr.testing.assert_allclose(found, alone, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(replaced, "TOKENS_AT_ONCE", 1)  # as a long sequence is computed
    one_by_one = getattr(extract, name)(tiny, sample, references=references, sources=sources)
    xr.testing.assert_allclose(together, one_by_one, rtol=1e-5, atol=1e-5)
