"""Arguments as people give them: taken as they are, or refused in one line; never rounded."""

import inspect

import numpy as np
import pytest
import torch
import xarray as xr

import interp
from interp import extract
from interp.data.boxes import check_boxes
from interp.faithfulness import faithfulness
from interp.inputs.prompts import teacher_forced
from interp.maps import target_index, token_map


@pytest.fixture(scope="module")
def sample():
    return interp.load_samples("digits", limit=7)[6]


def rows(tiny, sample, positions, **options):
    ds = interp.extract.ledger(tiny, sample, positions=positions, detail="summary", **options)
    return ds["target_position"].values.tolist()


@pytest.mark.parametrize(
    "positions",
    [
        [50, 51],
        (50, 51),
        np.array([50, 51]),
        np.array([50, 51], dtype=np.uint8),
        [np.int64(50), np.int32(51)],
        torch.tensor([50, 51]),
        range(50, 52),
        (k for k in (50, 51)),
    ],
)
def test_whole_numbers_of_any_make(tiny, sample, positions):
    assert rows(tiny, sample, positions) == [50, 51]


MASK = np.arange(60) == 50
WRONG = [
    MASK,
    MASK.tolist(),
    torch.from_numpy(MASK),
    [True],
    [3.9],
    [50.0],
    np.array([7.9]),
    ["50"],
    "50",
    b"50",
    50,
    [[50]],
    [None],
]


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_list_of_whole_numbers_is_refused(tiny, sample, wrong):
    with pytest.raises(ValueError, match="expected positions as a list of whole numbers, got"):
        rows(tiny, sample, wrong)
    message = (
        "expected target ids as a list of whole numbers, got|expected targets of one token each"
    )
    with pytest.raises(ValueError, match=message):
        rows(tiny, sample, [50], targets=wrong)


@pytest.mark.parametrize("wrong", WRONG[:-1])
def test_rows_of_source_sets_and_foils_are_whole_numbers_too(tiny, sample, wrong):
    with pytest.raises(ValueError, match="expected rows of source set 'mine' as a list of whole"):
        interp.extract.effects(tiny, sample, sources={"mine": wrong}, positions=[50])
    if isinstance(wrong, list) and len(wrong) == 1:
        message = "expected foils as a list of whole numbers, got|expected foils of one token each"
        with pytest.raises(ValueError, match=message):
            rows(tiny, sample, [50], gauge="contrast", foils=wrong)


def test_targets_and_foils_as_text_are_the_tokens_that_they_spell(tiny, sample):
    """ "7" once explained the token with the id 7."""
    ids = {
        text: tiny.processor.tokenizer(text, add_special_tokens=False).input_ids for text in "78"
    }
    by_text, by_id = (
        interp.extract.ledger(
            tiny, sample, positions=[50], targets=[one], foils=[other], gauge="contrast"
        )
        for one, other in (("7", "8"), (ids["7"][0], ids["8"][0]))
    )
    assert by_text.identical(by_id)
    assert by_text["target_token"].values.tolist() == ["7"] and ids["7"] != [7]
    with pytest.raises(ValueError, match=r"one token each, got ' top left', which is \["):
        rows(tiny, sample, [50], targets=[" top left"])
    with pytest.raises(ValueError, match="whole numbers"):
        batch = {"input_ids": torch.tensor([[1, 2]]), "attention_mask": torch.ones(1, 2).long()}
        interp.extract.ledger(tiny.model, batch, positions=[1], targets=["7"])


@pytest.mark.parametrize("wrong", [[-1], [10**6]])
def test_rows_outside_the_text_are_refused(tiny, sample, wrong):
    with pytest.raises(ValueError, match=r"expected target positions in 0\.\."):
        rows(tiny, sample, wrong)


def test_a_target_is_an_index_of_python_or_numpy(tiny, sample):
    ds = interp.extract.ledger(tiny, sample, detail="tokens")
    for index in ds["target"].values:
        assert target_index(ds, index) == target_index(ds, int(index)) == int(index)
        ds.vlm.map(index)
    assert target_index(ds, -1) == ds.sizes["target"] - 1
    for wrong in (np.int64(99), -99, True, []):
        with pytest.raises(ValueError, match="expected a target"):
            target_index(ds, wrong)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v, s: interp.extract.ledger(v, s, foils=["red"]), "gauge='contrast' with foils="),
        (lambda v, s: interp.extract.effects(v, s, foils="runner-up"), "gauge='contrast' with"),
        (lambda v, s: list(interp.extract.each("ledger", v, [(s, {"foils": [5]})])), "with foils="),
        (
            lambda v, s: interp.extract.ledger(v, s, gauge="contrast", foils="red"),
            "got the text 'red'; put it into a list",
        ),
        (lambda v, s: interp.extract.ledger(s, v), "or a model and the processor's batch, got Sam"),
    ],
)
def test_what_would_change_nothing_or_is_in_the_wrong_place_is_said(tiny, sample, call, message):
    with pytest.raises(ValueError, match=message):
        call(tiny, sample)


def test_foils_are_read_by_one_of_several_gauges(tiny, sample):
    references = interp.extract.references(tiny, sample, kinds=["blur"])
    asked = {"references": references, "positions": [55], "targets": [5], "foils": [7]}
    both = interp.extract.shapley(tiny, sample, gauge=("centered", "contrast"), **asked)
    assert both.sizes["gauge"] == 2
    with pytest.raises(ValueError, match="'centered', which has none"):
        interp.extract.shapley(tiny, sample, gauge="centered", **asked)


def test_calls_that_need_a_processor_say_so_to_a_bare_model(tiny, sample):
    """In one line, with what came; all of them, and for text alone what can be asked of it."""
    model = tiny.model
    batch = teacher_forced(tiny.processor, sample, None).batch
    said = "expected a VLM, as interp.load_model or interp.wrap gives it, and a Sample, got Qwen2_5"
    asked = {
        extract.maps: (batch,),
        extract.pixel_effects: (batch,),
        extract.references: (batch,),
        extract.words: (sample, sample),
        interp.explain: (sample.image, sample.question),
    }
    for call, arguments in asked.items():
        with pytest.raises(ValueError, match=said):
            inspect.unwrap(call)(model, *arguments)  # the annotations are checked in tests alone
    text = tiny.processor.tokenizer("which digit is red?", return_tensors="pt")
    assert extract.effects(model, text, positions=[2], sources={"first": [0]})["total"].size == 1
    with pytest.raises(ValueError, match=r"got none: .*pass sources=\{name: \[rows\]\}"):
        extract.effects(model, text, positions=[2])
    with pytest.raises(
        ValueError, match="expected rows for this sample, of text alone, got 'image'; pass sets"
    ):
        extract.patch_effects(model, text, positions=[2])


def test_small_slips_are_taken_or_named(tiny, sample):
    """One name for a list of names, a text for a completion, one sample for several."""
    effects = extract.effects(tiny, sample, sources="image", positions=[50])
    assert effects["source_set"].values.tolist() == ["image"]
    with pytest.raises(ValueError, match="whole numbers, got truth values"):
        extract.ledger(tiny, sample, positions=[50, True])
    with pytest.raises(ValueError, match="expected samples, got one Sample"):
        inspect.unwrap(extract.each)("ledger", tiny, sample)
    maps = {"flat": xr.zeros_like(token_map(extract.ledger(tiny, sample), "answer"))}
    own = tiny.answer(sample.image, sample.question).text
    given = faithfulness(tiny, sample, maps, completion=own)
    assert np.isfinite(given["log_likelihood"]).all()
    with pytest.raises(ValueError, match="expected boxes as an array of shape .k, 4., got list"):
        inspect.unwrap(check_boxes)([[0, 0, 1, 1]])
