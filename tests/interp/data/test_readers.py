"""Readers of files, each on small files in its exact format."""

import json
import logging

import numpy as np
import pytest
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Pictures

import interp
from interp.data import readers as rows
from interp.data import saliency_r1
from interp.data.images import open_image


@pytest.fixture
def folder(tmp_path):
    """Images: landscape 500 × 391 as in Visual-CoT's own example turned, portrait and square."""
    (tmp_path / "images").mkdir()
    for name, size in (("wide", (500, 391)), ("tall", (391, 500)), ("square", (64, 64))):
        Pictures.new("RGB", size, "navy").save(tmp_path / "images" / f"{name}.png")
    return tmp_path


def test_jsonl(folder, caplog):
    good = {
        "id": "a",
        "image": "images/wide.png",
        "question": "what?",
        "answer": "blue",
        "thinking": "it is blue.",
        "boxes": [[0, 0, 0.5, 0.5], [0.25, 0.25, 1, 1]],
        "family": "colour",
    }
    lines = [
        json.dumps(good),
        json.dumps({"image": "images/tall.png", "question": "q", "answer": "x", "boxes": None}),
        json.dumps({"image": "../secret.png", "question": "q", "answer": "x"}),
        json.dumps({"image": "images/wide.png", "question": "q", "answer": " "}),
        json.dumps({"image": "images/wide.png", "question": "q"}),
        json.dumps({"image": "images/wide.png", "question": "q", "answer": 4}),
        json.dumps({"image": "images/wide.png", "question": "q", "answer": True}),
        json.dumps({**good, "boxes": [[0, 0, 2, 1]]}),
        "{not json",
    ]
    (folder / "test.jsonl").write_text("\n".join(lines) + "\n\n")
    with caplog.at_level(logging.WARNING):
        found = interp.load_samples(f"jsonl:{folder}", limit=10)
    assert [one.id for one in found] == ["a", "test-000001", "test-000004", "test-000005"]
    assert [one.answer for one in found] == ["blue", "x", None, "4"]
    assert found[0].thinking == "it is blue." and found[0].boxes.shape == (2, 4)
    assert found[1].boxes is None and found[1].image.name == "tall.png"
    assert sum("rows left out" in record.message for record in caplog.records) == 5
    assert any("inside the folder" in record.message for record in caplog.records)
    vlm = interp.load_model("tiny")
    ds = interp.extract.ledger(vlm, found[0], detail="summary")
    assert float(np.abs(ds.remainder / ds.magnitude).max()) < 1e-5
    assert len(interp.load_samples(f"jsonl:{folder}", limit=1)) == 1
    with pytest.raises(ValueError, match=r"expected train.jsonl or samples.jsonl"):
        interp.load_samples(f"jsonl:{folder}/images", split="train")


def test_rows_of_several_images_and_of_later_turns(folder, caplog):
    names = ["images/wide.png", "images/tall.png"]
    rows = [
        {"id": "two", "image": names, "question": "which is wider?", "answer": "the first"},
        {"id": "turn", "image": names[1], "question": "and now?", "earlier": [["hello?", "yes."]]},
        {"id": "out", "image": [names[0], "../secret.png"], "question": "q"},
        {"id": "boxed", "image": names, "question": "q", "boxes": [[0, 0, 1, 1]]},
        {"id": "lost", "image": None, "question": "q"},
        {"id": "empty", "image": [], "question": "q"},
    ]
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with caplog.at_level(logging.WARNING):
        found = interp.load_samples(f"jsonl:{folder}", limit=10)
    assert [one.id for one in found] == ["two", "turn"]
    assert [path.name for path in found[0].images] == ["wide.png", "tall.png"]
    assert found[1].earlier == (("hello?", "yes."),)
    reasons = " ".join(record.message for record in caplog.records)
    assert "one image with boxes" in reasons and "inside the folder" in reasons
    vlm = interp.load_model("tiny")
    ds = interp.extract.effects(vlm, found[0], completion="<think>\nx\n</think>\n3")
    assert {"image", "image 0", "image 1"} <= set(ds["source_set"].values.tolist())


def test_visual_cot_in_both_formats(folder, caplog):
    """Its own example: 391 × 500, [217, 343, 242, 393] → [.542, .686, .592, .786] when padded."""
    meta = {
        "question": "What is on the shelf?",
        "answer": "a vase",
        "image": "images/tall.png",
        "width": 391,
        "height": 500,
        "bboxs": [[217, 343, 242, 393], [0, 0, 40, 40]],
        "dataset": "gqa",
        "split": "val",
    }
    outside = {**meta, "bboxs": [[400, 10, 420, 20]]}
    partly = {**meta, "bboxs": [[380, 10, 394, 20], [5, 5, 5, 9]]}
    (folder / "val.jsonl").write_text("\n".join(json.dumps(x) for x in (meta, outside, partly)))
    with caplog.at_level(logging.WARNING):
        found = interp.load_samples(f"visual_cot:{folder}", split="val", limit=10)
    assert "1 rows left out: no box with an area inside the image" in caplog.text
    np.testing.assert_allclose(found[0].boxes[0], [217 / 391, 0.686, 242 / 391, 0.786])
    np.testing.assert_allclose(found[1].boxes, [[380 / 391, 0.02, 1.0, 0.04]])
    assert "1 boxes moved onto the border, which they crossed by at most 1 %" in caplog.text
    assert "1 boxes left out: outside the image by more than 1 %" in caplog.text
    assert [one.id for one in found] == ["gqa-val-0", "gqa-val-2"]

    turns = [
        {
            "from": "human",
            "value": "<image>\nWhat is on the shelf? Please provide the bounding box "
            "coordinate of the region that can help you.",
        },
        {"from": "gpt", "value": "[0.542, 0.686, 0.592, 0.786]"},
        {"from": "human", "value": "<image>"},
        {"from": "gpt", "value": "a vase"},
    ]
    llava = {
        "dataset": "gqa",
        "split": "train",
        "question_id": 7,
        "conversations": turns,
        "image": ["images/tall.png", "images/tall.png###[217, 343, 242, 393]"],
    }
    (folder / "llava.json").write_text(json.dumps([llava, {**llava, "image": ["images/tall.png"]}]))
    (one,) = interp.load_samples(f"visual_cot:{folder / 'llava.json'}", split="train", limit=5)
    assert (one.question, one.answer) == ("What is on the shelf?", "a vase")
    np.testing.assert_allclose(one.boxes, found[0].boxes[:1])
    padded = np.array([[0.542, 0.686, 0.592, 0.786]])
    np.testing.assert_allclose(rows.out_of_square(padded, 391, 500), one.boxes, atol=2e-3)
    with pytest.raises(ValueError, match="expected a file of Visual-CoT"):
        interp.load_samples(f"visual_cot:{folder / 'no.json'}")


BOXES = [
    "[0.1, 0.2, 0.5, 0.6]",
    "[0.9, 0.5, 1.005, 1.002]",
    "[1.064, 0.48, 1.334, 0.749]",
    "[0.5, 0.5, 0.5, 0.9]",
    "nothing",
    "[0.1, 0.2, 0.3]",
    "[0.0, 0.05, 1.0, 0.95]",
]


@pytest.fixture
def eight_k(folder):
    """Rows as in saliency-r1-8k, as a parquet file."""
    names = ["wide", "tall", "wide", "wide", "square", "wide", "wide"]
    table = {
        "dataset": ["gqa"] * 7,
        "split": ["train"] * 7,
        "question_id": list(range(7)),
        "problem": ["What is it?"] * 7,
        "bbox": BOXES,
        "solution": ["a vase"] * 7,
        "image": [str(folder / f"images/{name}.png") for name in names],
    }
    features = Features(
        {name: Value("int64" if name == "question_id" else "string") for name in table}
        | {"image": Image()}
    )
    made = Dataset.from_dict(table, features=features)
    (folder / "parquet").mkdir()
    made.to_parquet(folder / "parquet/train-00000-of-00001.parquet")
    made.save_to_disk(folder / "saved")
    return folder


@pytest.mark.parametrize("form", ["parquet", "saved"])
def test_saliency_r1(eight_k, form, caplog):
    with caplog.at_level(logging.WARNING):
        found = interp.load_samples(f"saliency_r1:{eight_k / form}", split="train", limit=10)
    assert [one.id for one in found] == ["gqa-0", "gqa-1", "gqa-6"]
    np.testing.assert_allclose(found[0].boxes, [[0.1, 0.2, 0.5, 0.6]])
    np.testing.assert_allclose(found[1].boxes, [[0.9, 0.5, 1.0, 1.0]])
    assert "2 rows left out: no box with an area inside the image" in caplog.text
    assert "2 rows left out: a box that is not four numbers" in caplog.text
    assert found[0].question == "What is it?" and open_image(found[0].image).size == (500, 391)
    padded = interp.load_samples(
        f"saliency_r1:{eight_k / form}", split="train", limit=1, frame="padded"
    )
    low = (0.2 * 500 - 54) / 391  # half of 500 - 391 pixels lie above
    np.testing.assert_allclose(padded[0].boxes[0, 1], low)
    np.testing.assert_allclose(padded[0].boxes[0, [0, 2]], [0.1, 0.5])


def test_what_the_frame_is_can_be_told_from_a_violation():
    wide = (500, 391)
    inside = np.array([[0.1, 0.2, 0.5, 0.6]])
    below = np.array([[0.0, 0.05, 1.0, 0.95]])  # the padding alone is 0.109 on either side
    found = saliency_r1.frame_evidence([(wide, inside), (wide, below), ((64, 64), below)])
    assert found == {"landscape": 2, "outside_the_padded_image": 1}


def test_orders_and_bad_names(eight_k):
    path = f"saliency_r1:{eight_k / 'parquet'}"
    seeded = [one.id for one in interp.load_samples(path, split="train", limit=3, seed=1)]
    assert seeded == [one.id for one in interp.load_samples(path, split="train", limit=3, seed=1)]
    assert set(seeded) == {"gqa-0", "gqa-1", "gqa-6"}
    for name, message in (
        ("coco", "expected a data set of"),
        ("jsonl", "with a path"),
        (f"saliency_r1:{eight_k}/none", "expected a folder"),
        (f"saliency_r1:{eight_k}/images", "expected parquet files"),
    ):
        with pytest.raises(ValueError, match=message):
            interp.load_samples(name)
    with pytest.raises(ValueError, match="a frame of"):
        interp.load_samples(path, frame="square")


def test_a_hugging_face_data_set_on_disk(folder, caplog):
    """With a broken image among the rows, which is found when it is measured and not before."""
    content = [(folder / f"images/{name}.png").read_bytes() for name in ("wide", "tall", "square")]
    table = {
        "image": [
            {"bytes": content[0], "path": None},
            {"bytes": content[1][:80], "path": None},
            {"bytes": content[2], "path": None},
            None,
        ],
        "question": ["q"] * 4,
        "answer": ["a", "b", "c", "d"],
        "boxes": [[[0.0, 0.0, 0.5, 0.5]], None, [[0.1, 0.1, 1.0, 1.0], [0, 0, 0.2, 0.2]], None],
        "id": ["x/1", "x/2", "x/1", "y"],
    }
    features = Features(
        {
            "image": Image(),
            "question": Value("string"),
            "answer": Value("string"),
            "boxes": List(List(Value("float64"))),
            "id": Value("string"),
        }
    )
    Dataset.from_dict(table, features=features).save_to_disk(folder / "saved")
    with caplog.at_level(logging.WARNING):
        found = interp.load_samples(f"hf:{folder / 'saved'}", limit=10)
    assert [one.id for one in found] == ["x_1", "x_2"]
    assert "1 rows left out: an id that an earlier row has" in caplog.text
    assert "1 rows left out: no image in the row" in caplog.text
    assert open_image(found[0].image).size == (500, 391)
    with pytest.raises(ValueError, match="a readable image file"):
        open_image(found[1].image)
    np.testing.assert_array_equal(found[0].boxes, [[0, 0, 0.5, 0.5]])
    with pytest.raises(ValueError, match="columns image, question and answer"):
        Dataset.from_dict({"image": content[:1]}).save_to_disk(folder / "other")
        interp.load_samples(f"hf:{folder / 'other'}")


def test_an_option_that_a_reader_does_not_take_is_named():
    """Shuffling, say, which is a seed here; and no TypeError of a function nobody called."""
    said = r"expected options of \['families', 'max_digits', 'seed'\] .* got \['shuffle'\]; seed="
    with pytest.raises(ValueError, match=said):
        interp.load_samples("digits", shuffle=True)
    with pytest.raises(ValueError, match=r"options of \['seed'\] .* got \['frame'\]"):
        interp.load_samples("jsonl:nowhere", frame="padded")
