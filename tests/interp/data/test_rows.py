"""Rows as people's files have them: odd lines, odd numbers, odd ids, boxes a little outside."""

import json
import logging

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

import interp
from interp.data.readers import as_id
from interp.data.sample import Sample, is_file_name

ROW = {"image": "a.png", "question": "q", "answer": "x"}


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (112, 84), "navy").save(tmp_path / "a.png")
    return tmp_path


def read(folder, *lines, kind="jsonl", **options):
    """Samples that a reader makes of lines, each given as an object or as it stands in the file."""
    content = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    (folder / "test.jsonl").write_bytes(b"\n".join(content))
    return interp.load_samples(f"{kind}:{folder}", limit=100, **options)


def cot(**more):
    return {**ROW, "width": 112, "height": 84, "bboxs": [[0, 0, 50, 40]], **more}


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r"])
def test_lines_end_at_newlines_alone(folder, separator):
    question = f"one{separator}two"
    for kind, row in (("jsonl", ROW), ("visual_cot", cot())):
        line = json.dumps({**row, "question": question}, ensure_ascii=False).encode()
        if separator == "\r":  # as JSON has it
            line = json.dumps({**row, "question": question}).encode()
        first, second = read(folder, line, {**row, "id": "b"}, kind=kind)
        assert first.question == question and second.question == "q"
    assert len(read(folder, *[json.dumps(ROW).encode() + b"\r"] * 3)) == 3


DEEP = b"[" * 100_000
BAD_LINES = {
    b"{not json": "a line that is no JSON",
    json.dumps(ROW).encode()[:20]: "a line that is no JSON",
    DEEP: "a line that is no JSON",
    b'{"image": ' + DEEP: "a line that is no JSON",
    b"null": "a line that is no JSON object",
    b"[1, 2]": "a line that is no JSON object",
    b"7": "a line that is no JSON object",
    b'{"question": "\xff\xfe"}': "a line that is not UTF-8",
    b'{"question": "q"}': "no 'image' in the row",
    b'{"image": 7, "question": "q", "answer": "x"}': "a field that is missing or of another type",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_one_bad_line_costs_itself_alone(folder, line, caplog):
    with caplog.at_level(logging.WARNING):
        assert len(read(folder, ROW, line, {**ROW, "id": "b"})) == 2
    assert f"test.jsonl: 1 rows left out: {BAD_LINES[line]}" in caplog.text
    assert len(read(folder, cot(), line, cot(), kind="visual_cot")) == 2


def test_a_byte_order_mark_is_no_row(folder):
    for kind, row in (("jsonl", ROW), ("visual_cot", cot())):
        first = b"\xef\xbb\xbf" + json.dumps(row).encode()
        assert len(read(folder, first, row, kind=kind)) == 2
    listed = {
        "question_id": 7,
        "image": ["a.png", "a.png###[0, 0, 50, 40]"],
        "conversations": [{"value": "<image>q"}, {"value": "x"}],
    }
    (folder / "test.json").write_bytes(b"\xef\xbb\xbf" + json.dumps([listed, None]).encode())
    (only,) = interp.load_samples(f"visual_cot:{folder / 'test.json'}")
    np.testing.assert_allclose(only.boxes, [[0, 0, 50 / 112, 40 / 84]])
    (folder / "test.json").write_text(json.dumps({"rows": []}))
    with pytest.raises(ValueError, match=r"test\.json: expected one JSON list of rows, got one d"):
        interp.load_samples(f"visual_cot:{folder / 'test.json'}")


ODD_BOXES = [
    [[0, 0, 1, 10**400]],
    [["a", 0, 1, 1]],
    [[0, 0, 1]],
    [[0, 0, 1, 1], [0, 0, 1]],
    {"x": 1},
    "boxes",
    7,
    [[[0, 0, 1, 1]]],
]


@pytest.mark.parametrize("boxes", ODD_BOXES)
def test_boxes_that_are_no_boxes_cost_their_row(folder, boxes, caplog):
    with caplog.at_level(logging.WARNING):
        assert len(read(folder, {**ROW, "boxes": boxes}, {**ROW, "id": "b"})) == 1
        assert len(read(folder, cot(bboxs=boxes), cot(), kind="visual_cot")) == 1
    assert caplog.text.count("1 rows left out: boxes that are not lists of four numbers") == 2


def test_boxes_a_little_outside_are_brought_in_everywhere_and_counted(folder, caplog):
    near, far, flat = [-0.009, 0.2, 1.01, 0.5], [0.2, 0.2, 1.02, 0.5], [0.2, 0.2, 0.2, 0.5]
    inside = [0, 0.2, 1, 0.5]
    with caplog.at_level(logging.WARNING):
        one, two = read(folder, {**ROW, "boxes": [near, far, flat]}, {**ROW, "boxes": near})
    np.testing.assert_array_equal(one.boxes, [inside])
    np.testing.assert_array_equal(two.boxes, [inside])
    assert "2 boxes moved onto the border, which they crossed by at most 1 %" in caplog.text
    assert "2 boxes left out: outside the image by more than 1 %, or without an area" in caplog.text
    image = Image.new("RGB", (8, 8))
    np.testing.assert_array_equal(Sample("a", image, "q", "x", boxes=[near]).boxes, [inside])
    for wrong in ([far], [flat], [[np.nan, 0, 1, 1]]):
        with pytest.raises(ValueError, match="a: expected boxes"):
            Sample("a", image, "q", "x", boxes=wrong)
    with pytest.raises(ValueError, match="a: expected boxes .* of numbers, got"):
        Sample("a", image, "q", "x", boxes=[[0, 0, 1, 1], [0, 0]])


def test_ids_name_files_of_any_script_and_stay_apart(folder, caplog):
    long = "図" * 100  # 300 bytes
    with caplog.at_level(logging.WARNING):
        samples = read(folder, {**ROW, "id": long}, {**ROW, "id": None}, {**ROW, "id": "図"}, ROW)
    assert [one.id for one in samples] == ["test-000001", "図", "test-000003"]
    assert "longer than 200 bytes" in caplog.text
    ids = [as_id(long, k) for k in range(3)]
    assert len(set(ids)) == 3 and all(map(is_file_name, ids))
    assert max(len(name.encode()) for name in ids) <= 200
    assert as_id("x/1", 2) == "x_1-2" and is_file_name(as_id("..", 0))


def test_reasons_name_no_row(folder, caplog):
    """Two thousand rows with one fault are one line."""
    lines = [{**ROW, "image": f"../{k}.png"} for k in range(1000)]
    lines += [{**ROW, "answer": " " * (k + 1), "id": f"r{k}"} for k in range(1000)]
    with caplog.at_level(logging.WARNING), pytest.raises(ValueError) as caught:
        read(folder, *lines)
    assert len(str(caught.value)) < 300
    assert "1000 rows left out: expected an image inside the folder" in caplog.text
    assert "1000 rows left out: expected a non-empty answer" in caplog.text


def test_a_split_that_is_not_there_is_refused(folder):
    image = {"bytes": (folder / "a.png").read_bytes(), "path": None}
    table = Dataset.from_dict({"image": [image], "question": ["q"], "answer": ["x"]})
    table.to_parquet(folder / "train-00000-of-00001.parquet")
    for split in ("test", "tset", "tr"):
        with pytest.raises(ValueError, match=f"parquet files of the split '{split}', got .*train-"):
            interp.load_samples(f"hf:{folder}", split=split)
    assert len(interp.load_samples(f"hf:{folder}", split="train")) == 1
    (folder / "train-00000-of-00001.parquet").rename(folder / "rows.parquet")
    assert len(interp.load_samples(f"hf:{folder}", split="test")) == 1


def test_boxes_of_a_stored_photo_turn_with_it(folder):
    """Visual-CoT's sides say in which frame a box is: those of the stored image, or upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (112, 84), "navy").save(folder / "a.png", exif=exif)
    stored, upright = read(folder, cot(), cot(width=84, height=112), kind="visual_cot")
    np.testing.assert_allclose(stored.boxes, [[1 - 40 / 84, 0, 1, 50 / 112]])
    np.testing.assert_allclose(upright.boxes, [[0, 0, 50 / 84, 40 / 112]])
