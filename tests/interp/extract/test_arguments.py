"""Arguments as people give them: taken as they are, or refused in one line; never rounded."""

import numpy as np
import pytest
import torch

import interp
from interp.maps.grid import target_index


@pytest.fixture(scope="module")
def tiny():
    return interp.load_model("tiny")


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
    ["7"],
]


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_list_of_whole_numbers_is_refused(tiny, sample, wrong):
    with pytest.raises(ValueError, match="expected positions as a list of whole numbers, got"):
        rows(tiny, sample, wrong)
    with pytest.raises(ValueError, match="expected target ids as a list of whole numbers, got"):
        rows(tiny, sample, [50], targets=wrong)


@pytest.mark.parametrize("wrong", WRONG[:-2] + WRONG[-1:])
def test_rows_of_source_sets_and_foils_are_whole_numbers_too(tiny, sample, wrong):
    with pytest.raises(ValueError, match="expected rows of source set 'mine' as a list of whole"):
        interp.extract.effects(tiny, sample, sources={"mine": wrong}, positions=[50])
    if isinstance(wrong, list) and len(wrong) == 1:
        with pytest.raises(ValueError, match="expected foils as a list of whole numbers, got"):
            rows(tiny, sample, [50], gauge="contrast", foils=wrong)


@pytest.mark.parametrize("wrong", [[-1], [10**6]])
def test_rows_outside_the_text_are_refused(tiny, sample, wrong):
    with pytest.raises(ValueError, match=r"expected target positions in 0\.\."):
        rows(tiny, sample, wrong)


def test_a_target_is_an_index_of_python_or_numpy(tiny, sample):
    ds = interp.extract.ledger(tiny, sample, detail="tokens")
    for index in ds["target"].values:
        assert target_index(ds, index) == target_index(ds, int(index)) == int(index)
        ds.vlm.map(index)
    for wrong in (np.int64(99), -1, True):
        with pytest.raises(ValueError, match="expected a target"):
            target_index(ds, wrong)
