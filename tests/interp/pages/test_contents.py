"""Contents of a page: the datasets' numbers, unpacked as the script unpacks them."""

import base64
import json
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import interp
from interp.maps.alignment import alignment
from interp.maps.grid import arranged, one_map
from interp.pages import notes, packing
from interp.pages.contents import named
from interp.pages.contents import shown as shown_of
from interp.pages.drawn_images import spread
from interp.pages.page import contents, html
from interp.vocabulary import INTERVENTIONS, MAP_KINDS
from tests.support import odd_models


def unpacked(packed) -> np.ndarray:
    data = zlib.decompress(base64.b64decode(packed["data"]))
    return np.frombuffer(data, dtype="<" + packed["dtype"]).reshape(packed["shape"])


def drawn(rounded) -> np.ndarray:
    limits = unpacked(rounded["limits"])[..., None]
    return unpacked(rounded["steps"]) / packing.STEPS * limits


@pytest.fixture(scope="module")
def run(shown):
    return shown_of(shown.answer)


def test_the_ledgers_parts_sum_to_the_logit(run, shown):
    own = {name: unpacked(run["ledger"][name]) for name in ("by_layer", "embed", "remainder")}
    logit = unpacked(run["ledger"]["logit"])
    whole = own["by_layer"].sum((1, 2)) + own["embed"] + own["remainder"]
    np.testing.assert_allclose(whole, logit, atol=2e-5)
    np.testing.assert_array_equal(logit, shown.datasets["ledger"]["logit"])
    to_image = run["ledger"]["columns"].index("attention to image")
    expected = shown.datasets["ledger"]["direct_by_layer"].sel(role="image")
    np.testing.assert_array_equal(own["by_layer"][..., to_image], expected)


def test_maps_are_rounded_to_half_a_step_and_their_sums_are_not(run, shown):
    kinds = {kind["name"]: kind for kind in run["kinds"]}
    assert set(kinds) == {*MAP_KINDS, *INTERVENTIONS, "rollout"}
    maps = shown.datasets["maps"]
    (image,) = run["images"]
    for name in MAP_KINDS:
        values = drawn(kinds[name])
        for k in range(maps.sizes["target"]):
            if not kinds[name]["defined"][k]:
                assert not bool(maps["is_defined"].sel(kind=name)[k])
                continue
            grid = np.zeros(image["rows"] * image["columns"])
            np.add.at(grid, image["cell"], values[k][image["token"]] * np.array(image["share"]))
            expected = one_map(maps, k, name)
            step = float(np.abs(expected).max()) / packing.STEPS
            np.testing.assert_allclose(
                grid.reshape(expected.shape), expected, atol=0.501 * step + 1e-9
            )
            (total,) = unpacked(kinds[name]["sum"])[k]
            assert total == pytest.approx(float(expected.sum()), abs=1e-4)
            inside = float(alignment(expected, shown.explained.sample.boxes)["alignment"])
            assert unpacked(kinds[name]["inside"])[k] == pytest.approx(inside, abs=1e-5)
    pixels = shown.datasets["pixels"]["total"].sel(intervention="pixels")
    is_visual = shown.datasets["ledger"]["image"].values >= 0
    np.testing.assert_allclose(
        unpacked(kinds["pixels"]["sum"])[:, 0], pixels[:, is_visual].sum("source"), atol=1e-4
    )


def test_effects_heads_and_words_are_the_datasets(run, shown):
    effects, heads = shown.datasets["effects"], shown.datasets["heads"]
    np.testing.assert_array_equal(unpacked(run["effects"]["effect"]), effects["effect"])
    np.testing.assert_array_equal(unpacked(run["effects"]["total"]), effects["total"])
    np.testing.assert_array_equal(unpacked(run["heads"]["image"]), heads["head_image"])
    attention = drawn(run["heads"]["attention"])
    np.testing.assert_allclose(attention, heads["top_attention"], atol=0.5 / packing.STEPS)
    words = shown.datasets["words"].sel(drawn="greedy", norm="live", gauge="contrast")
    found = run["words"]["gauges"]["contrast"]
    np.testing.assert_allclose(found["owen"], words["words_owen"], atol=0)
    assert sum(found["owen"]) == pytest.approx(found["total"], abs=1e-4)
    likely = shown.datasets["alternatives"]
    for k, target in enumerate(run["targets"]):
        assert [one[0] for one in target["likely"]] == likely["likely_token"][k].values.tolist()
        ids = likely["likely_token_id"][k].values == int(likely["target_token_id"][k])
        assert [one[2] for one in target["likely"]] == ids.tolist()
        assert target["probability"] == pytest.approx(float(np.exp(likely["log_probability"][k])))


def test_the_text_is_whole_and_in_order(run, shown):
    text = "".join(one["text"] for one in run["tokens"])
    assert text in f"{shown.explained.text}<|im_end|>" and text.endswith("green<|im_end|>")
    buttons = [one["target"] for one in run["tokens"] if one["target"] is not None]
    assert buttons == list(range(len(run["targets"])))
    assert run["start"] == shown.explained.indices[0]


def test_two_views_spread_as_maps_do():
    """Tokens of a small picture give each cell of the mosaic behind it a share by area."""
    rng = np.random.default_rng(0)
    fine, coarse = (np.indices(size).reshape(2, -1) for size in ((4, 6), (2, 2)))
    place = [np.r_[np.zeros(24, int), np.ones(4, int)], *np.c_[fine, coarse]]
    values = rng.normal(size=28)
    token, cell, share = spread(np.arange(28), place)
    grid = np.zeros(24)
    np.add.at(grid, cell, values[token] * np.array(share))
    np.testing.assert_allclose(grid.reshape(4, 6), arranged(values, *place), atol=1e-5)


def test_every_kind_says_what_it_is_not():
    assert set(notes.KINDS) == {*MAP_KINDS, *INTERVENTIONS}
    for title, what, is_not in notes.KINDS.values():
        assert title and what and is_not


HOSTILE = "</script><img src=x onerror=alert(1)><!--DATA--><!--MODULE--> {{x}} $&"


def test_hostile_texts_stay_text(shown, tmp_path):
    sample = replace(shown.explained.sample, question=HOSTILE)
    path = interp.page(replace(shown.answer, sample=sample, name=HOSTILE), tmp_path / "x.html")
    page = path.read_text()
    assert "<img src=x" not in page and page.count("</script>") == 2
    data = page.split('id="data">')[1].split("</script>")[0]
    assert json.loads(data)["title"] == HOSTILE
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")


def test_a_page_is_made_of_datasets_alone_and_of_one_that_is_bare(shown, tmp_path):
    several = list(shown.datasets.values())
    assert named(several).keys() == named(shown.datasets).keys()
    ledger = shown.datasets["ledger"]
    alone = contents(ledger, samples=[shown.explained.sample])["runs"][0]
    assert [kind["name"] for kind in alone["kinds"]] == ["direct"]
    assert alone["images"][0]["src"].startswith("data:image/")
    processor = odd_models.processor_of(None)
    inputs = odd_models.batch(processor)
    model = odd_models.make(next(iter(odd_models.SHAPES)), processor)
    last = inputs["input_ids"].shape[1] - 1
    bare = interp.extract.ledger(
        model, inputs, positions=[last - 2, last - 1, last - 1], targets=[3, 5, 7], detail="tokens"
    )
    run = contents(bare)["runs"][0]
    assert [one["target"] for one in run["tokens"]] == [0, 1, 2]
    assert interp.page(bare, tmp_path / "bare.html").is_file()


def test_several_images_and_none(tiny, tmp_path):
    picture = Image.new("RGB", (84, 56), "red")
    two = interp.explain(tiny, [picture, picture], "which digit is red?", completion="3")
    run = contents(two.of(image=1))["runs"][0]
    assert len(run["images"]) == 2 and run["image"] == 1
    direct = next(kind for kind in run["kinds"] if kind["name"] == "direct")
    by_image = unpacked(direct["sum"])[0]
    for number, total in enumerate(by_image):
        own = one_map(two.datasets(graph=False)["maps"], 0, "direct", image=number)
        assert total == pytest.approx(float(own.sum()), abs=1e-4)
    first, second = (set(one["token"]) for one in run["images"])
    assert not first & second and first | second == set(range(len(first) + len(second)))
    text = interp.explain(tiny, None, "how many?", completion="3")
    assert contents(text)["runs"][0]["images"] == []
    assert text.save(tmp_path / "text.html").is_file()


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ([], "expected what interp.explain gives"),
        ("x", "expected what interp.explain gives"),
        (3, "expected what interp.explain gives"),
        ({"a": 1}, "expected datasets of interp.extract, got one of int"),
    ],
)
def test_other_things_are_refused(answers, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        interp.page(answers, tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()


def test_datasets_that_do_not_belong_together_are_refused(shown, tiny, tmp_path):
    ledger, maps = shown.datasets["ledger"], shown.datasets["maps"]
    other = interp.load_samples("digits", split="test", limit=8)[2]
    foreign = interp.extract.maps(tiny, other, kinds="direct")
    effects = shown.datasets["effects"]
    others = {
        "effects of another text": interp.extract.effects(tiny, other),
        "some of the targets": effects.isel(target=slice(2)),
        "heads in another order": shown.datasets["heads"].isel(target=slice(None, None, -1)),
        "another answer's probabilities": interp.extract.alternatives(tiny, other),
    }
    for what, one in others.items():
        with pytest.raises(ValueError, match=r"expected the ledger's targets, got others"):
            interp.page([ledger, one], tmp_path / f"{what}.html")
    for fact, value in (("gauge", "raw"), ("model_hash", "x"), ("adapter_hash", "y")):
        with pytest.raises(ValueError, match=f"expected the ledger's {fact}, .* got {value} in"):
            interp.page([ledger, effects.assign_attrs({fact: value})], tmp_path / "x.html")
    stranger = maps.isel(target=[0]).assign_coords(target_token_id=("target", [9999]))
    with pytest.raises(ValueError, match=r"expected the ledger's targets, got others in maps"):
        interp.page([ledger, stranger], tmp_path / "x.html")
    assert interp.page([ledger, maps.isel(target=[3])], tmp_path / "part.html").is_file()
    for answers, says in (
        ([maps], "expected a ledger of detail"),
        ([ledger, ledger], "expected one dataset of ledger"),
        ([ledger, foreign], "expected datasets of one text, got maps of another"),
        ([interp.extract.ledger(tiny, other, detail="summary")], "got one of"),
        ([shown.answer] * 3, "got 3 of them"),
    ):
        with pytest.raises(ValueError, match=says):
            interp.page(answers, tmp_path / "x.html")
    with pytest.raises(ValueError, match=r"ends with \.html"):
        interp.page(ledger, tmp_path / "x.pdf")
    with pytest.raises(ValueError, match="expected 1 names, one per answer, got 2"):
        interp.page(ledger, tmp_path / "x.html", names=["a", "b"])
    with pytest.raises(ValueError, match=r"options with a path that ends with \.html"):
        shown.explained.save(tmp_path / "folder", kinds=("edge",))


def test_a_notebooks_widget_has_the_same_module_and_data(shown):
    widget = pytest.importorskip("interp.pages.widget")
    data = contents(shown.answer)
    made = widget.widget(data)
    assert made.page == data
    assert str(made._esm).replace("export default", "const view =") in html(data)


def test_what_cannot_be_had_is_said_and_the_rest_is_there(shown, tiny):
    """Paths through the words are of the model's own text, and need two answers."""
    scene = shown.explained.sample
    twin = interp.load_samples("digits", split="test", limit=8)[6].twin
    given = interp.explain(tiny, scene.image, scene.question, completion="<think>\n\n</think>\nred")
    answer = given.as_answer(partner=twin, graph=False)
    assert "words" not in answer.datasets
    (said,) = contents(answer)["runs"][0]["left_out"]
    assert "the model's own text, and this one was given" in said
    own = interp.explain(tiny, scene.image, scene.question)
    (said,) = own.as_answer(partner=scene.image, graph=False).left_out
    assert "answers" in said and "words" not in answer.datasets
    assert "edges" not in answer.datasets
    partnered = own.as_answer(partner=twin.image, graph=False)  # an image, answered by the model
    assert partnered.datasets["words"].attrs["partner"] == "partner"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kinds": ("magic",)}, "expected kinds of"),
        ({"kinds": ()}, "expected kinds of"),
        ({"methods": ("magic",)}, "expected methods of"),
        ({"methods": ("rollout",)}, "expected one image for methods=, got 2"),
        ({"pixels": True}, "expected one image for pixels=, got 2"),
    ],
)
def test_what_it_cannot_show_is_refused_before_anything_is_computed(options, says, tiny):
    picture = Image.new("RGB", (84, 56), "red")
    two = interp.explain(tiny, [picture, picture], "which digit is red?", completion="3")
    with pytest.raises(ValueError, match=says):
        two.as_answer(**options)


def test_the_other_image_is_named(shown):
    kinds = {kind["name"]: kind for kind in shown_of(shown.answer)["kinds"]}
    for name in notes.AGAINST:
        assert kinds[name]["reference"] == "the image of digits-test-0-000006-twin"
    alone = shown.explained.datasets(kinds=("slot",))
    assert alone["maps"].attrs["reference"] == "this image, blurred"
    assert alone["node_effects"].attrs["reference"] == "this image, blurred"


def test_a_page_that_may_be_sent_has_no_path_of_this_machine(shown, tmp_path):
    ledger = shown.datasets["ledger"].assign_attrs(
        model=str(tmp_path / "mine"), adapter=str(tmp_path / "run" / "final")
    )
    path = interp.page(ledger, tmp_path / "x.html", samples=[shown.explained.sample])
    assert str(tmp_path) not in path.read_text()
    (run,) = contents(ledger)["runs"]
    assert run["name"] == "mine + final" and run["facts"]["model"] == "mine"
