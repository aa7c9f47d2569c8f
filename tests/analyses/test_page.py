"""`vlm-interp page`: an image, a sample, two models, a twin; and what it refuses."""

import json

import numpy as np
import pytest
from PIL import Image

from analyses import page
from tests.support import commands

QUICK = ("--no-graph", "--heads", 1, "--kinds", "direct", "--device", "cpu")


def data_of(path):
    text = path.read_text()
    return json.loads(text.split('id="data">')[1].split("</script>")[0])


def test_a_picture_and_a_question(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (90, 140, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    asked = ("--image", tmp_path / "photo.jpg", "--question", "which digit is red?")
    commands.run(page, *asked, *QUICK, "--text", "7", "--out", tmp_path / "a/x.html")
    (run,) = data_of(tmp_path / "a/x.html")["runs"]
    assert run["question"] == "which digit is red?" and run["whose"] == "a given text"
    assert [one["token"] for one in run["targets"]] == ["7"]
    assert run["images"][0]["width"] == 140 and "graph" not in run


def test_a_sample_beside_its_twin(tmp_path):
    out = tmp_path / "x.html"
    asked = ("--sample", "digits-test-0-000006", "--partner", "twin", "--compare", "partner")
    commands.run(page, *asked, *QUICK, "--out", out)
    first, second = data_of(out)["runs"]
    assert (first["targets"][-1]["token"], second["targets"][-1]["token"]) == ("green", "red")
    assert first["name"] == "tiny: its image" and second["name"] == "tiny: the partner's image"
    totals = [run["words"]["gauges"]["contrast"]["total"] for run in (first, second)]
    assert totals[0] == pytest.approx(totals[1], rel=1e-4)  # the same game, seen from either side


def test_a_model_and_its_adapter_on_one_text(tmp_path):
    out = tmp_path / "x.html"
    models = ("--model", "tiny-cold", "--compare", "tiny-saliency-r1")
    commands.run(page, *models, *QUICK, "--out", out)
    first, second = data_of(out)["runs"]
    assert second["name"] == "tiny-cold + tiny-saliency-r1"
    assert (first["whose"], second["whose"]) == ("the model's own text", "a given text")
    tokens = [[one["token"] for one in run["targets"]] for run in (first, second)]
    assert tokens[0] == tokens[1]
    assert first["ledger"]["logit"] != second["ledger"]["logit"]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (("--question", "hm?"), "expected --image and --question together"),
        (("--image", "x.png"), "expected --image and --question together"),
        (("--sample", "nobody"), "expected the id of one of the first"),
        (("--out", "x.pdf"), "ends with .html"),
        (("--compare", "nobody"), "expected a model or an adapter to compare with"),
        (("--methods", "magic"), "expected methods of"),
        (("--kinds", "magic"), "expected kinds of"),
    ],
)
def test_what_it_cannot_do_is_one_line(asked, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = () if "--out" in asked else ("--out", tmp_path / "x.html")
    quick = QUICK[:3] + QUICK[-2:] if "--kinds" in asked else QUICK
    done = commands.run(page, *asked, *quick, *out, code=2)
    (line,) = [one for one in done.stderr.splitlines() if one.startswith("error:")]
    assert says in line
    assert not list(tmp_path.glob("*.html"))
