"""Rows of data files as users of datasets found them wrong, and odd ones of our own."""

import json
from pathlib import Path

import numpy as np
import pytest

import interp
from interp.data.images import open_image
from tests.support.symptoms import ROW, colour, hf_rows, write_rows


def test_parquet_with_categories_is_read(tmp_path):
    """A categorical column of pandas ends reading with NotImplementedError.

    huggingface/datasets #5706, Support categorical data types for Parquet
    """
    import pandas as pd

    frame = pd.DataFrame(hf_rows()).assign(family=pd.Categorical(["x", "y"]))
    frame.to_parquet(tmp_path / "test.parquet")
    got = interp.load_samples(f"hf:{tmp_path}", split="test")
    assert [one.family for one in got] == ["x", "y"]


def test_parquet_of_polars_is_read(tmp_path):
    """polars writes large_string and large_binary, which do not cast to images.

    huggingface/datasets #7765, polars dataset cannot cast column to Image/Audio/Video
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = hf_rows()
    image = pa.array(
        rows["image"], pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())])
    )
    table = pa.table(
        {
            "image": image,
            "question": pa.array(rows["question"], pa.large_string()),
            "answer": pa.array(rows["answer"], pa.large_string()),
            "boxes": pa.array(
                [[[0.1, 0.1, 0.5, 0.5]]] * 2, pa.large_list(pa.large_list(pa.float64()))
            ),
        }
    )
    pq.write_table(table, tmp_path / "test.parquet")
    got = interp.load_samples(f"hf:{tmp_path}", split="test")
    assert [one.answer for one in got] == ["a0", "a1"]
    assert colour(open_image(got[0].image)) == (255, 0, 0)
    np.testing.assert_allclose(got[0].boxes, [[0.1, 0.1, 0.5, 0.5]])


def test_parquet_of_polars_with_bare_bytes_is_read(tmp_path):
    """The image column is large_binary alone (huggingface/datasets #7765, PR #7800)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = hf_rows()
    content = pa.array([one["bytes"] for one in rows["image"]], pa.large_binary())
    table = pa.table({"image": content, "question": rows["question"], "answer": rows["answer"]})
    pq.write_table(table, tmp_path / "test.parquet")
    got = interp.load_samples(f"hf:{tmp_path}", split="test")
    assert colour(open_image(got[0].image)) == (255, 0, 0)


@pytest.mark.parametrize(
    "name", ["data[v2]", "data*", "what?", "a b", "ünïcode 图", ".hidden", "{x}"]
)
def test_a_folder_of_any_name_is_read(tmp_path, name):
    """Brackets in a folder's name are taken for a pattern, hidden folders are left out.

    huggingface/datasets #7468 (load_dataset can't solve folder path with "[]") and #6073
    """
    import pandas as pd

    (tmp_path / name).mkdir()
    pd.DataFrame(hf_rows()).to_parquet(tmp_path / name / "test.parquet")
    assert len(interp.load_samples(f"hf:{tmp_path / name}", split="test")) == 2


@pytest.mark.parametrize("how", ["numpy", "torch", "pandas", "columns"])
def test_a_data_set_that_was_saved_in_a_format_is_the_same(tmp_path, how):
    """A data set remembers its format on disk and gives other types or fewer columns.

    huggingface/datasets #5050 / PR #5073, Restore saved format state in load_from_disk
    """
    import datasets

    rows = hf_rows() | {"boxes": [[[0.1, 0.1, 0.5, 0.5]], None]}
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    if how == "columns":
        table = table.with_format(None, columns=["question", "answer"])
    else:
        table = table.with_format(how)
    table.save_to_disk(str(tmp_path / "saved"))
    got = interp.load_samples(f"hf:{tmp_path / 'saved'}", split="test")
    assert [one.answer for one in got] == ["a0", "a1"]
    np.testing.assert_allclose(got[0].boxes, [[0.1, 0.1, 0.5, 0.5]])
    assert got[1].boxes is None
    assert colour(open_image(got[0].image)) == (255, 0, 0)


def test_a_file_that_was_written_again_is_read_again(tmp_path):
    """A changed file under the same name is served from the cache.

    huggingface/datasets #444 and #2956, Cache problem in the load_dataset method
    """
    import pandas as pd

    for answers in (["old", "old"], ["new", "new"]):
        pd.DataFrame(hf_rows() | {"answer": answers}).to_parquet(tmp_path / "test.parquet")
        got = interp.load_samples(f"hf:{tmp_path}", split="test")
        assert [one.answer for one in got] == answers


def test_class_labels_are_not_taken_for_numbers(tmp_path):
    """A ClassLabel column gives numbers instead of names.

    huggingface/datasets #4210, Cannot cast array data; left out with a reason or named
    """
    import datasets

    table = datasets.Dataset.from_dict(hf_rows() | {"answer": [0, 1]})
    table = table.cast_column("image", datasets.Image())
    table = table.cast_column("answer", datasets.ClassLabel(names=["cat", "dog"]))
    table.save_to_disk(str(tmp_path / "saved"))
    try:
        got = interp.load_samples(f"hf:{tmp_path / 'saved'}", split="test")
    except ValueError as error:
        assert "expected answer as text" in str(error)
    else:
        assert [one.answer for one in got] == ["cat", "dog"]


@pytest.mark.parametrize("name", ["a b", "ünï 图", "data[v2]", "a:b", "%41", "-x", "'q'"])
def test_a_jsonl_folder_of_any_name_is_read(tmp_path, name):
    """Spaces, colons, brackets, percent signs and quotes in a folder's name."""
    assert len(interp.load_samples(write_rows(tmp_path / name, [ROW]))) == 1


@pytest.mark.parametrize("limit", [0, -1, -5])
def test_a_limit_that_is_none_is_refused_or_gives_none(tmp_path, limit):
    """--limit 0 and --limit -1: no row, or an error that speaks of the limit; never all rows."""
    data = write_rows(tmp_path / "data", [ROW | {"id": str(k)} for k in range(4)])
    try:
        got = interp.load_samples(data, limit=limit)
    except ValueError as error:
        assert "limit" in str(error)
        return
    assert got == []


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({"family": 3}, True),
        ({"family": None}, True),
        ({"id": 7}, True),
        ({"id": "हिन्दी"}, True),
        ({"id": "e\u0301"}, True),
        ({"boxes": [["0.1", "0.1", "0.5", "0.5"]]}, None),
        ({"boxes": [[False, False, True, True]]}, None),
        ({"answer": 3}, None),
        ({"thinking": ""}, True),
        ({"question": ""}, None),
    ],
    ids=str,
)
def test_odd_fields_cost_nothing_or_the_row(tmp_path, change, kept):
    """Numbers as families and ids, decomposed and Indic letters in ids, truth values as boxes."""
    data = write_rows(tmp_path / "data", [ROW | change, ROW | {"id": "last"}])
    got = interp.load_samples(data)
    assert got[-1].id == "last"
    if kept is not None:
        assert (len(got) == 2) is kept


def test_rows_of_a_windows_editor_are_read(tmp_path):
    """CRLF, blank lines and a last line without an end."""
    write_rows(tmp_path / "data", [])
    text = "\r\n\r\n".join(json.dumps(ROW | {"id": str(k)}) for k in range(3))
    (tmp_path / "data" / "test.jsonl").write_bytes(text.encode())
    assert [s.id for s in interp.load_samples(f"jsonl:{tmp_path / 'data'}")] == ["0", "1", "2"]


def test_a_data_set_named_by_a_path_is_taken_or_refused_in_words():
    """load_model and open_run take a Path; load_samples(Path("digits")) ends in AttributeError."""
    try:
        got = interp.load_samples(Path("digits"), limit=1)
    except ValueError as error:
        assert "expected a data set" in str(error)
    else:
        assert len(got) == 1
