"""The embedded scenes: deterministic, split by image, one answer each, twins that differ."""

import numpy as np
import pytest

import interp
from interp.data.boxes import box_overlap
from interp.data.digits import drawing as scene
from interp.data.digits import scenes as digits


def test_the_same_seed_makes_the_same_scene():
    a, b = digits.make_sample("test", 7), digits.make_sample("test", 7)
    assert (a.question, a.text, a.twin.text) == (b.question, b.text, b.twin.text)
    assert np.array_equal(np.asarray(a.image), np.asarray(b.image))
    assert digits.make_sample("test", 7, seed=1).image.tobytes() != a.image.tobytes()


def test_no_digit_image_is_in_both_splits():
    train, test = (
        {i for indices in scene.glyphs(split).values() for i in indices} for split in scene.SPLITS
    )
    assert not train & test
    assert len(train) + len(test) == 1797
    assert all(len(scene.glyphs("test")[label]) >= 50 for label in range(10))


def test_families_take_turns_and_have_few_surprises():
    samples = interp.load_samples("digits", split="test", limit=200)
    assert [s.family for s in samples[:5]] == list(digits.QUESTIONS)
    assert len({s.id for s in samples}) == 200
    for s in samples:
        assert s.answer != s.twin.answer
        assert s.question == s.twin.question
        assert s.image.size == s.twin.image.size
        assert s.image.tobytes() != s.twin.image.tobytes()
        assert s.boxes.shape[1] == 4
    sizes = {s.image.size for s in samples}
    assert any(w == h for w, h in sizes)
    assert any(w != h for w, h in sizes)


def test_twins_differ_only_inside_one_digit():
    for s in interp.load_samples("digits", split="test", limit=60):
        differs = (np.asarray(s.image) != np.asarray(s.twin.image)).any(axis=2)
        rows, columns = np.nonzero(differs)
        assert np.ptp(rows) < scene.SIZES[1]
        assert np.ptp(columns) < scene.SIZES[1]


def test_boxes_hold_the_evidence():
    """Ink inside the boxes of a colour question has the colour that was asked for."""
    for s in interp.load_samples("digits", split="test", limit=40, families=("count",)):
        color = np.array(scene.COLORS[s.question.split()[-1].rstrip("?")], dtype=float)
        pixels = np.asarray(s.image, dtype=float)
        height, width, _ = pixels.shape
        for x0, y0, x1, y1 in s.boxes * [width, height, width, height]:
            patch = pixels[round(y0) : round(y1), round(x0) : round(x1)].reshape(-1, 3)
            brightest = patch[patch.sum(axis=1).argmax()]
            assert np.abs(brightest - color).max() < 40
        assert int(s.answer) == len(s.boxes)
        assert box_overlap(s.boxes, 4, 4).sum() > 0


def test_the_thinking_of_count_and_sum_fixes_the_answer():
    for s in interp.load_samples("digits", split="test", limit=40, families=("count", "sum")):
        if s.family == "count":
            assert int(s.answer) == s.thinking.count(",") + 1
        else:
            labels = [
                int(word.rstrip(".")) for word in s.thinking.split() if word.rstrip(".").isdigit()
            ]
            assert int(s.answer) == sum(labels)


def test_left_of_names_the_neighbour():
    for s in interp.load_samples("digits", split="test", limit=30, families=("left_of",)):
        left, right = sorted(s.boxes, key=lambda box: box[0])
        assert left[2] <= right[0] + 1e-9


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="a split of"):
        interp.load_samples("digits", split="validation")
    with pytest.raises(ValueError, match="families of"):
        interp.load_samples("digits", families=("rhyme",))
    with pytest.raises(ValueError, match="families that 1 digits can ask"):
        interp.load_samples("digits", families=("sum",), max_digits=1)
    with pytest.raises(ValueError, match="a data set of"):
        interp.load_samples("cifar")


def test_texts_at_first_glance_are_of_one_piece_and_often_wrong():
    """They fit the question and each other, but not the scene."""
    right = 0
    for i in range(300):
        true = digits.make_sample("train", i, with_twin=False)
        hasty = digits.at_first_glance("train", i)
        assert (hasty.id, hasty.question) == (true.id, true.question)
        assert hasty.image.tobytes() == true.image.tobytes()
        assert np.array_equal(hasty.boxes, true.boxes)
        right += hasty.answer == true.answer
        if true.family == "count":
            assert hasty.answer == "1"
            assert "," not in hasty.thinking
        if true.family == "sum":
            first, second = (int(c) for c in hasty.thinking if c.isdigit())
            assert first == second
            assert int(hasty.answer) == 2 * first
        if true.family == "digit_by_color":
            assert hasty.thinking.split(" at the ")[0] == true.thinking.split(" at the ")[0]
    assert 0.4 < right / 300 < 0.65


def test_a_careless_mix_has_its_share_of_hasty_texts():
    from train.tiny.mix import Mix

    mix = Mix(400, 5, (0.0, 0.0, 0.0), digits.QUESTIONS, 0.0, careless=0.65)
    careful = Mix(400, 5, (0.0, 0.0, 0.0), digits.QUESTIONS, 0.0)
    differs = [mix.scene(i).text != careful.scene(i).text for i in range(400)]
    assert 0.22 < np.mean(differs) < 0.42  # half of 65 %
    assert [mix.scene(i).text for i in range(9)] == [mix.scene(i).text for i in range(9)]


def test_brief_scenes_are_the_scenes_with_one_thought_for_all():
    brief = interp.load_samples("digits_brief", limit=9, seed=5)
    families = ("digit_by_color", "color_by_digit", "left_of")
    scenes = interp.load_samples("digits", limit=9, seed=5, families=families)
    assert [one.family for one in brief] == 3 * list(families)
    for one, other in zip(brief, scenes, strict=True):
        assert (one.question, one.answer) == (other.question, other.answer)
        assert np.array_equal(np.asarray(one.image), np.asarray(other.image))
        assert one.thinking == one.twin.thinking == "look at the image." != other.thinking
        assert one.twin.answer == other.twin.answer != one.answer
        assert one.dataset == one.twin.dataset == "digits_brief"
    with pytest.raises(ValueError, match=r"options of \['seed'\]"):
        interp.load_samples("digits_brief", families=("count",))
