"""The last walk through a stranger's diary: what the commands say now."""

import logging
import re

import pytest

import interp
from analyses import direct_vs_indirect
from tests.support import commands


@pytest.fixture(scope="module")
def scene():
    return interp.load_samples("digits", limit=1)[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("--attn-implementation", "flash_attention_2"),
            "expected the packages of {'attn_implementation': 'flash_",
        ),
        (("--compare", "/tmp/none"), "expected a model or an adapter to compare with"),
        (("--adapter", "/tmp/none"), "expected an adapter, a folder with adapter_config.json"),
    ],
)
def test_a_command_refuses_in_one_line_before_it_measures(arguments, said, tmp_path):
    asked = ("--limit", 2, "--no-witness", "--out", tmp_path / "out")
    done = commands.run(direct_vs_indirect, *arguments, *asked, code=2)
    (line,) = [one for one in done.stderr.splitlines() if one.startswith("error: ")]
    assert said in line and "Repo id" not in line
    assert not (tmp_path / "out").exists()


def test_a_report_counts_the_texts_that_there_are(tmp_path, scene, tiny):
    """One of three rows has no image and no text: two texts, both cut off."""
    scene.image.save(tmp_path / "a.png")
    rows = [{"image": name, "question": scene.question} for name in ("a.png", "none.png", "a.png")]
    lines = [
        f'{{"id": "{k}", "image": "{r["image"]}", "question": "{r["question"]}"}}'
        for k, r in enumerate(rows)
    ]
    (tmp_path / "test.jsonl").write_text("\n".join([*lines, "no row"]))
    asked = ("--data", f"jsonl:{tmp_path}", "--effects", "edge", "--no-witness")
    limit = len(tiny.answers([scene])[0].token_ids) - 1
    done = commands.run(
        direct_vs_indirect, *asked, "--max-new-tokens", limit, "--out", tmp_path / "out"
    )
    page = (tmp_path / "out/index.html").read_text()
    assert re.search(r"2 of 2 texts were cut off", page)
    assert done.stderr.count("no row") + done.stderr.count("left out") <= 2


def test_a_command_says_at_level_info_what_it_does(caplog, tmp_path):
    asked = ("--limit", 1, "--effects", "edge", "--no-witness", "--log-level", "info")
    with caplog.at_level(logging.INFO):
        commands.run(direct_vs_indirect, *asked, "--out", tmp_path / "out")
    said = [one.getMessage() for one in caplog.records if one.name == "extraction"]
    for beginning in ("loading tiny", "certifying the extractor", "measuring", "drawing"):
        assert any(one.startswith(beginning) for one in said), said
