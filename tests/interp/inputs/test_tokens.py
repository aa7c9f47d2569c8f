"""Roles on token ids, the patch grid, box overlap, completions and bad images."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from interp.data.boxes import box_overlap, check_boxes, evidence_cells
from interp.data.digits import scenes as digits
from interp.data.images import open_image
from interp.data.sample import Sample, format_text
from interp.inputs import completions
from interp.inputs import prompts as inputs
from interp.model.vlm import PROMPTS


def ids_of(processor, text):
    return processor.tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("prompt", list(PROMPTS))
def test_every_role_spells_its_text(processor, prompt):
    sample = digits.make_sample("test", 4)
    made = inputs.teacher_forced(processor, sample, PROMPTS[prompt])
    spelled = {
        role: "".join(
            t for t, r in zip(made.tokens.text, made.tokens.role, strict=True) if r == role
        )
        for role in set(made.tokens.role)
    }
    assert spelled["question"] == sample.question
    assert spelled["thinking"].rstrip("\n") == sample.thinking
    assert spelled["answer"] == sample.answer
    assert spelled["system"] == (PROMPTS[prompt] or "You are a helpful assistant.")
    assert set(spelled["image"].replace("<|image_pad|>", "")) == set()
    assert "<think" in spelled["template"]
    assert "<|im_end|>" in spelled["template"]
    targets = [made.tokens.role[i] for i in made.tokens.targets()]
    assert set(targets) == {"thinking", "answer"}
    assert targets == sorted(targets, reverse=True)  # thinking first


def test_a_completions_ids_are_used_as_sampled(processor):
    """The same text in other tokens, which tokenizing it again would not give back."""
    sample = digits.make_sample("test", 0)
    whole = ids_of(processor, sample.text)
    letters = [i for char in sample.text for i in ids_of(processor, char)]
    assert len(letters) > len(whole)
    made = completions.completion(
        processor.tokenizer, [*letters, processor.tokenizer.eos_token_id, 0, 0]
    )
    assert made.thinking == sample.thinking
    assert made.answer == sample.answer
    assert made.is_complete
    assert made.token_ids == (*letters, processor.tokenizer.eos_token_id)
    forced = inputs.teacher_forced(processor, sample, None, made)
    assert forced.batch["input_ids"][0, -len(letters) - 1 : -1].tolist() == letters
    thinking = [
        t for t, r in zip(forced.tokens.text, forced.tokens.role, strict=True) if r == "thinking"
    ]
    assert "".join(thinking) == sample.thinking


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [
        ("<think>\na b\n</think>\n7", "a b", "7"),
        ("<think>a</think>7 8", "a", "7 8"),
        ("7", None, "7"),
        ("<think>\nnever closed", None, ""),
        ("<think>\n</think>\n7", None, "7"),
        ("<think>\na\n</think>\n", "a", ""),
        ("über <think> 7", None, "über <think> 7"),
    ],
)
def test_completions_of_every_shape_have_a_defined_outcome(processor, text, thinking, answer):
    made = completions.completion(processor.tokenizer, ids_of(processor, text))
    assert (made.thinking, made.answer, made.is_complete) == (thinking, answer, False)
    assert made.text == text


def test_a_completion_without_an_answer_is_refused(processor):
    made = completions.completion(processor.tokenizer, ids_of(processor, "<think>\nnever"))
    with pytest.raises(ValueError, match="a completion with an answer"):
        inputs.teacher_forced(processor, digits.make_sample("test", 0), None, made)


def test_special_tokens_in_a_question_are_refused(processor):
    image = Image.new("RGB", (56, 56))
    for mark in ("<|image_pad|>", "<|im_start|>"):
        with pytest.raises(ValueError, match="special tokens"):
            inputs.prompts(processor, [(image, f"what {mark}?")], None)


def test_patches_are_row_major_on_non_square_images(processor):
    """A single bright cell lights up the patches of its own row and column."""
    sample = Sample(
        "s", Image.new("RGB", (140, 84)), "q", "a", boxes=np.array([[0.2, 0.0, 0.4, 1 / 3]])
    )
    pixels = np.zeros((84, 140, 3), dtype=np.uint8)
    pixels[28:56, 84:112] = 255  # row 1, column 3
    bright = Image.fromarray(pixels)
    made = inputs.teacher_forced(processor, sample, None)
    visual = made.tokens.image >= 0
    assert made.tokens.row[visual].tolist() == [r for r in range(3) for _ in range(5)]
    assert made.tokens.column[visual].tolist() == list(range(5)) * 3
    patches = inputs.prompts(processor, [(bright, "q")], None)["pixel_values"].mean(dim=1)
    brightest = int(patches.reshape(-1, 4).mean(dim=1).argmax())
    assert (made.tokens.row[visual][brightest], made.tokens.column[visual][brightest]) == (1, 3)
    expected = np.zeros(15)
    expected[1] = 1
    np.testing.assert_allclose(made.tokens.box_overlap[visual], expected, atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 5), (1, 1), (4, 2)])
def test_box_overlap_equals_a_fine_raster(shape):
    rng = np.random.default_rng(0)
    corners = rng.random((3, 2, 2))
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    fine = 840
    at = (np.arange(fine) + 0.5) / fine
    inside = np.zeros((fine, fine), dtype=bool)
    for x0, y0, x1, y1 in boxes:
        inside |= np.outer((at > y0) & (at < y1), (at > x0) & (at < x1))
    rows, columns = shape
    raster = inside.reshape(rows, fine // rows, columns, fine // columns).mean(axis=(1, 3))
    np.testing.assert_allclose(box_overlap(boxes, rows, columns), raster, atol=0.02)


def test_every_box_has_a_cell_of_evidence():
    """A small box, a box across four cells and a large one."""
    boxes = np.array([[0.01, 0.01, 0.03, 0.02], [0.4, 0.4, 0.6, 0.6], [0.5, 0.0, 1.0, 0.5]])
    cells = evidence_cells(boxes, 2, 2)
    assert cells.tolist() == [[True, True], [False, False]]
    alone = [evidence_cells(box[np.newaxis], 4, 4).sum() for box in boxes]
    assert alone == [1, 1, 4]


def test_overlap_of_a_union_counts_area_once():
    box = np.array([[0.0, 0.0, 0.5, 1.0]])
    twice = np.concatenate([box, box])
    np.testing.assert_allclose(box_overlap(twice, 2, 2), [[1, 0], [1, 0]])


@pytest.mark.parametrize(
    "boxes",
    [
        [[0, 0, 1.2, 1]],
        [[0.5, 0, 0.4, 1]],
        [[0, 0, 0, 1]],
        [[0, 0, float("nan"), 1]],
        [[-0.1, 0, 1, 1]],
    ],
)
def test_impossible_boxes_are_refused(boxes):
    with pytest.raises(ValueError, match="boxes"):
        check_boxes(np.array(boxes, dtype=float))


def test_empty_boxes_and_answers_are_refused():
    image = Image.new("RGB", (56, 56))
    with pytest.raises(ValueError, match="k >= 1"):
        Sample("s", image, "q", "a", boxes=np.zeros((0, 4)))
    with pytest.raises(ValueError, match="non-empty answer"):
        Sample("s", image, "q", " ")


def test_a_sample_needs_images_or_none():
    """In a process of its own, without the shape checking that would speak first."""
    for nothing, message in (("[]", "images, or None for text"), ("7", "one image as a path")):
        code = f"from interp.data.sample import Sample; Sample('s', {nothing}, 'q', 'a')"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
        )
        assert f"ValueError: sample s: expected {message}" in done.stderr


def test_images_are_opened_in_rgb_or_refused(tmp_path):
    grey = np.linspace(0, 60000, 56 * 56).reshape(56, 56).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    opened = open_image(tmp_path / "deep.png")
    assert opened.mode == "RGB"
    assert len(np.unique(np.asarray(opened))) > 200  # not clipped to white
    Image.new("RGBA", (60, 60), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert open_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    (tmp_path / "broken.png").write_bytes((tmp_path / "deep.png").read_bytes()[:300])
    Image.new("L", (3000, 3000)).save(tmp_path / "large.png")
    for name, message in (("broken.png", "readable"), ("none.png", "readable")):
        with pytest.raises(ValueError, match=message):
            open_image(tmp_path / name)
    with pytest.raises(ValueError, match="at most 1000 pixels, got 3000 x 3000"):
        open_image(tmp_path / "large.png", max_pixels=1000)


def test_format_text_without_thinking_is_the_answer():
    assert format_text(None, "7") == "7"
    assert format_text("a", "7") == "<think>\na\n</think>\n7"
