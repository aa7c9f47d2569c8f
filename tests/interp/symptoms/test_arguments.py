"""Odd arguments: taken as they are meant, or refused in one line."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import interp
from interp.data.images import open_image
from interp.inputs import prompts
from tests.support.symptoms import TWO


@pytest.mark.parametrize("positions", ["tensor", "array", "range", "generator", "uint8"])
def test_positions_of_the_residual_stream_of_any_make(tiny, sample, positions):
    """residual(positions=…) as ledger(positions=…): tensors, arrays, ranges, generators."""
    made = {
        "tensor": torch.tensor([50, 51]),
        "array": np.array([50, 51]),
        "range": range(50, 52),
        "generator": (k for k in (50, 51)),
        "uint8": np.array([50, 51], np.uint8),
    }[positions]
    expected = interp.extract.residual(tiny, sample, positions=[50, 51])
    got = interp.extract.residual(tiny, sample, positions=made)
    np.testing.assert_array_equal(got["residual"], expected["residual"])
    assert got["position"].values.tolist() == [50, 51]


@pytest.mark.parametrize("wrong", [[True, False], [50.0], [50.9], "50", 50, ["50"], [[50]], [None]])
def test_positions_of_the_residual_stream_that_are_none_are_refused(tiny, sample, wrong):
    """A mask is no list of rows there either."""
    with pytest.raises(ValueError, match="position"):
        interp.extract.residual(tiny, sample, positions=wrong)


def test_a_mask_as_long_as_the_text_is_no_list_of_rows(tiny, sample):
    """residual(positions=mask)."""
    n = len(prompts.teacher_forced(tiny.processor, sample, None).tokens.ids)
    with pytest.raises(ValueError, match="position"):
        interp.extract.residual(tiny, sample, positions=np.arange(n) == 50)


@pytest.mark.parametrize(
    "make", [tuple, list, iter, np.array, lambda v: (x for x in v), dict.fromkeys]
)
def test_source_sets_of_any_make(tiny, sample, make):
    """sources= is an Iterable of names: generators and arrays, too; a dict needs its rows."""
    names = ["image", "question"]
    sources = make(names)
    if isinstance(sources, dict):
        sources = sources.keys()
    got = interp.extract.effects(tiny, sample, sources=sources, **TWO)
    assert got["source_set"].values.tolist() == names


def test_source_sets_of_a_generator_in_batches(tiny, samples):
    """The same through `each`, which looks at them for each sample, and to estimate memory."""
    own = {"sources": (name for name in ["image", "question"]), **TWO}
    (got,) = interp.extract.each("effects", tiny, [(samples[0], own)])
    assert got["source_set"].values.tolist() == ["image", "question"]
    shared = (name for name in ["image", "question"])
    for got in interp.extract.each("effects", tiny, samples[:2], sources=shared):
        assert got["source_set"].values.tolist() == ["image", "question"]


@pytest.mark.parametrize("kinds", [["direct", "bottleneck"], iter(["direct", "bottleneck"])])
def test_kinds_of_maps_of_any_make(tiny, sample, kinds):
    """kinds= as a list or an iterator."""
    got = interp.extract.maps(tiny, sample, kinds=kinds, max_targets=2)
    assert got["kind"].values.tolist() == ["direct", "bottleneck"]


@pytest.mark.parametrize(
    "options",
    [
        {"kinds": "nosuch"},
        {"kinds": ()},
        {"max_targets": 0},
        {"max_targets": -1},
        {"only": [0, 0]},
        {"only": [-1]},
        {"only": [True, False]},
        {"only": []},
        {"kinds": ("effect",), "n_nodes": -2},
        {"variant": "Paper"},
    ],
    ids=str,
)
def test_questions_for_maps_that_are_none_are_refused(tiny, sample, options):
    """Options of maps that mean nothing, or two things."""
    if options == {"only": [0, 0]}:
        try:
            got = interp.extract.maps(tiny, sample, **options)
        except ValueError:
            return
        assert got.sizes["kind" if "kinds" in options else "target"] == 2
        return
    with pytest.raises(ValueError, match="expected"):
        interp.extract.maps(tiny, sample, **options)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("--batch-size", "0"), ("--batch-size", "-1"), ("--shard-size", "0"),
        ("--shard-size", "-2"), ("--threads", "0"), ("--max-memory", "inf"),
    ],
)  # fmt: skip
def test_numbers_of_a_command_that_mean_nothing_are_refused(name, arguments, capsys):
    """A command whose --batch-size is 0 runs, certifies, and ends with "range() arg 3 …"."""
    from analyses.options import DirectVsIndirectReport
    from analyses.run.arguments import parse

    with pytest.raises(SystemExit) as caught:
        parse(DirectVsIndirectReport, "", [f"{name}={arguments}"])
    assert caught.value.code == 2


@pytest.mark.parametrize("foils", [iter([3, 4]), np.array([3, 4]), torch.tensor([3, 4]), (3, None)])
def test_foils_of_any_make(tiny, sample, foils):
    """foils= as an iterator, an array, a tensor, or with a gap."""
    got = interp.extract.ledger(
        tiny, sample, gauge="contrast", foils=foils, detail="summary", **TWO
    )
    assert float(np.abs(got.remainder / got.magnitude).max()) < 1e-5


def test_no_questions_have_no_answers(tiny):
    """vlm.answers([])."""
    assert tiny.answers([]) == []


def test_questions_of_a_generator_are_answered(tiny, samples):
    """vlm.answers(generator)."""
    pairs = [(s.image, s.question) for s in samples[:2]]
    assert tiny.answers((p for p in pairs), max_new_tokens=4) == tiny.answers(
        pairs, max_new_tokens=4
    )


@pytest.mark.parametrize("number", ["bool mask", "float mask"])
def test_numbers_of_the_batch_of_any_make(tiny, sample, number):
    """An attention mask of truth values or floats (ids in 32 bits fail in transformers itself)."""
    batch = dict(prompts.teacher_forced(tiny.processor, sample, None).batch)
    expected = interp.extract.ledger(tiny.model, batch, detail="summary", **TWO)
    kind = torch.bool if number == "bool mask" else torch.float32
    batch["attention_mask"] = batch["attention_mask"].to(kind)
    got = interp.extract.ledger(tiny.model, batch, detail="summary", **TWO)
    np.testing.assert_allclose(got["logit"], expected["logit"], atol=1e-6)


def test_one_foil_for_all_targets(tiny, sample):
    """foils=7 ended in "'int' object is not iterable"."""
    options = {"gauge": "contrast", "detail": "summary", **TWO}
    one = interp.extract.ledger(tiny, sample, foils=7, **options)
    each = interp.extract.ledger(tiny, sample, foils=[7, 7], **options)
    np.testing.assert_array_equal(one.logit, each.logit)
    for wrong in (7.5, True):
        with pytest.raises(
            ValueError, match=rf"foils as ids or tokens, one per target, got {wrong}"
        ):
            interp.extract.ledger(tiny, sample, foils=wrong, **options)


def test_messages_name_the_next_step(tiny, sample):
    ledger = interp.extract.ledger(tiny, sample)
    with pytest.raises(
        ValueError, match=r"interp\.extract\.maps, got .*; token_map takes a ledger"
    ):
        interp.maps.holistic(ledger)
    text = replace(sample, thinking=None)
    with pytest.raises(ValueError, match=r"for maps of \['bottleneck'\], got none"):
        interp.extract.maps(tiny, text, kinds=("bottleneck",))
    batch = prompts.teacher_forced(tiny.processor, sample, None).batch
    with pytest.raises(ValueError, match=r"in each\(…\) a sample is then \(inputs, \{"):
        next(interp.extract.each("ledger", tiny.model, [batch]))
    bare = interp.extract.ledger(tiny.model, batch, positions=[40])
    with pytest.raises(ValueError, match=r"need a processor: interp\.wrap\(model, processor\)"):
        bare.vlm.map("answer")


def test_pictures_without_boxes(tiny, sample):
    """Most people's samples have none."""
    direct = interp.maps.token_map(interp.extract.ledger(tiny, sample))
    _, axes = plt.subplots(1, 3)
    image = open_image(sample.image)
    interp.plots.scene(image, None, axes[0])
    interp.plots.signed_map(direct, None, axes[1], limit=1.0, aspect=1.0)
    interp.plots.overlay(image, direct, None, axes[2])
    assert [len(ax.images) for ax in axes] == [1, 1, 2]
    assert not any(
        isinstance(one, plt.Rectangle) and one.get_linewidth() > 1 for one in axes[0].patches
    )
