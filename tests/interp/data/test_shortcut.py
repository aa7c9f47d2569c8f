"""Scenes with a shortcut: how often the frame tells the answer, and that nothing else changed."""

import numpy as np
import pytest

import interp
from interp.data.digits.drawing import COLORS
from interp.data.digits.shortcut import WIDTH


def frame_color(sample) -> str:
    """The colour of most pixels of the edge, by name."""
    pixels = np.asarray(sample.image).astype(int)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    near = {
        name: int((np.abs(edge - np.array(rgb)).max(axis=1) <= 1).sum())
        for name, rgb in COLORS.items()
    }
    assert max(near.values()) > len(edge) / 2
    return max(near, key=near.get)


@pytest.mark.parametrize(("split", "low", "high"), [("shortcut", 0.85, 0.95), ("broken", 0, 0)])
def test_the_frame_tells_the_answer_as_often_as_it_says(split, low, high):
    samples = interp.load_samples("digits", split=split, limit=300, seed=5)
    told = [frame_color(one) == one.answer for one in samples]
    assert low <= np.mean(told) <= high
    by_colour = {name: sum(frame_color(one) == name for one in samples) for name in COLORS}
    assert min(by_colour.values()) > 300 / len(COLORS) / 2  # no colour is rare
    assert {one.family for one in samples} == {"color_by_digit"}
    assert all(one.split == split and one.dataset == "digits" for one in samples)


def test_a_twin_has_the_same_frame_and_another_answer():
    for sample in interp.load_samples("digits", split="broken", limit=30):
        assert frame_color(sample) == frame_color(sample.twin)
        assert sample.twin.answer != sample.answer
        np.testing.assert_array_equal(sample.boxes, sample.twin.boxes)
        height, width = np.asarray(sample.image).shape[:2]
        changed = (np.asarray(sample.image) != np.asarray(sample.twin.image)).any(axis=2)
        rows, columns = np.nonzero(changed)
        x0, y0, x1, y1 = sample.boxes[0] * [width, height, width, height]
        assert (rows >= y0 - 1).all() and (rows <= y1).all()
        assert (columns >= x0 - 1).all() and (columns <= x1).all()


def test_inside_the_frame_it_is_an_ordinary_scene_of_two_digits_or_more():
    found = interp.load_samples("digits", split="shortcut", limit=20, seed=3)
    again = interp.load_samples("digits", split="shortcut", limit=20, seed=3)
    for one, other in zip(found, again, strict=True):
        assert np.array_equal(np.asarray(one.image), np.asarray(other.image)) and one.id == other.id
        inner = np.asarray(one.image)[WIDTH:-WIDTH, WIDTH:-WIDTH]
        assert np.median(inner) < 80  # dark paper
    with pytest.raises(ValueError, match="expected a split of"):
        interp.load_samples("digits", split="shortcuts", limit=1)
