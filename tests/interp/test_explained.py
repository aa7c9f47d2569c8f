"""One line to an answer, from inputs as people have them, equal to the calls it stands on."""

import logging
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from PIL import Image

import interp
from interp.data.images import open_image


@pytest.fixture(scope="module")
def sample():
    return interp.load_samples("digits", split="test", limit=8)[6]


@pytest.fixture(scope="module")
def explained(tiny, sample):
    return interp.explain(tiny, sample.image, sample.question, boxes=sample.boxes)


def test_it_explains_the_models_own_text_with_the_public_calls_numbers(explained, tiny, sample):
    own = tiny.answer(sample.image, sample.question)
    assert explained.text == own.text and explained.completion.source == "own"
    effects = interp.extract.effects(tiny, sample, completion=own)
    at = interp.maps.target_index(effects, "answer")
    image = effects.isel(target=at).sel(source_set="image")
    assert explained.paths.loc["image", "total"] == pytest.approx(float(image.total))
    for path in image["path"].values:
        expected = float(image.effect.sel(path=path))
        assert explained.paths.loc["image", path] == pytest.approx(expected)
    ledger = interp.extract.ledger(tiny, sample, completion=own)
    is_image = (ledger.source_role == "image").values
    table = explained.table()
    assert table["token"].tolist() == explained.tokens == ledger.target_token.values.tolist()
    direct = ledger.direct.isel(source=is_image).sum(("layer", "head", "source"))
    np.testing.assert_allclose(table["image directly"], direct, atol=1e-5)
    np.testing.assert_allclose(table["probability"], np.exp(ledger.log_probability))
    heads = ledger.direct.isel(target=at).sum("source")
    top = explained.top_heads(3)
    assert abs(top["written"][0]) == pytest.approx(float(abs(heads).max()), abs=1e-5)
    first = heads.sel(layer=top["layer"][0], head=top["head"][0])
    assert top["written"][0] == pytest.approx(float(first), abs=1e-5)
    sources = ledger.direct.isel(target=at).sum(("layer", "head"))
    assert explained.top_sources(4).index[0] == int(abs(sources.values).argmax())


def test_the_map_sums_to_what_the_image_gives_and_is_upright(explained):
    total = explained.paths.loc["image", "total"]
    assert float(explained.map.sum()) == pytest.approx(total, rel=0.02)
    assert float(explained.direct_map.sum()) == pytest.approx(
        explained.table().iloc[-1]["image directly"], abs=1e-5
    )


def test_another_token_a_phrase_and_an_index(explained):
    assert explained.of(0).named == "the" and explained.of(-1).named == explained.named
    phrase = explained.of("top left")
    assert [explained.tokens[k] for k in phrase.indices] == [" top", " left"]
    both = explained.of("top").paths + explained.of("left").paths
    pd.testing.assert_frame_equal(phrase.paths, both, rtol=1e-5)
    for wrong in ("the", "bottom", 99, ""):
        with pytest.raises(ValueError, match="expected a t"):
            explained.of(wrong)


def test_a_sentence_is_explained_whole(tiny, sample):
    """Not its first word; the sum says over how many tokens it runs."""
    sentence = "the picture shows a small green 3 at the top left"
    found = interp.explain(tiny, sample.image, sample.question, completion=sentence)
    assert found.named == sentence and len(found.indices) == len(found.tokens) > 8
    every = found.effects["total"].sel(source_set="image")
    assert found.paths.loc["image", "total"] == pytest.approx(float(every.sum()), rel=1e-5)
    assert f"(centered, sum over {len(found.tokens)} tokens)" in repr(found)
    assert found.ledger.vlm.strip().get_xlabel() == "answer"
    long = interp.explain(tiny, sample.image, sample.question, completion="3 " * 70, target=2)
    titles = [one.get_title() for one in long.figure().axes]
    assert "what the image gives directly (Eq. 1) to tokens 0 to 47" in titles
    plt.close("all")


def test_figure_and_files(explained, tmp_path):
    before = mpl.rcParams["axes.titlesize"]
    figure = explained.figure()
    labels = [one.get_xlabel() for one in figure.axes]
    assert sum("[logit, centered]" in label for label in labels) == 2
    assert mpl.rcParams["axes.titlesize"] == before, "the caller's style is the caller's"
    title = figure.get_suptitle()
    assert explained.sample.question in title and "the model's own text" in title
    figure.canvas.draw()
    plt.close(figure)
    folder = explained.save(tmp_path / "saved")
    stored = xr.open_dataset(folder / "ledger.nc")
    np.testing.assert_array_equal(stored["logit"], explained.ledger["logit"])
    np.testing.assert_allclose(xr.open_dataset(folder / "map.nc")["map"], explained.map)
    assert len(pd.read_csv(folder / "tokens.csv")) == len(explained.tokens)
    assert (folder / "explained.png").stat().st_size > 1000
    assert not plt.get_fignums()
    with pytest.raises(ValueError, match="expected a folder to make, got .*, which is there"):
        explained.save(folder)


def test_a_token_is_no_formula_in_a_spreadsheet(tiny, sample, tmp_path):
    found = interp.explain(tiny, sample.image, sample.question, completion="=1+1")
    texts = pd.read_csv(found.save(tmp_path / "saved") / "tokens.csv")["token"].tolist()
    assert found.tokens[0].startswith("=") and texts[0] == f"'{found.tokens[0]}"


def test_its_words_are_its_numbers(explained):
    said, image = repr(explained), explained.paths.loc["image"]
    said_of_image = f"{image['total']:.2f} logits (centered): {image['direct']:.2f} directly"
    assert f"loses {said_of_image}" in said
    assert f"{image['norm']:.2f} by the final norm" in said and "its own row cannot read" in said
    assert explained.sample.question in said and explained.text in said.replace("\\n", "\n")


def test_images_as_people_have_them(tiny, sample, tmp_path, monkeypatch):
    picture = open_image(sample.image)
    picture.save(tmp_path / "photo.png")
    pixels = np.asarray(picture)
    forms = [
        tmp_path / "photo.png",
        str(tmp_path / "photo.png"),
        (tmp_path / "photo.png").read_bytes(),
        bytearray((tmp_path / "photo.png").read_bytes()),
        pixels,
        pixels / 255,
        np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)]),
        picture,
    ]
    expected = tiny.answer(picture, sample.question).token_ids
    for form in forms:
        assert open_image(form).tobytes() == picture.tobytes(), type(form)
        one = interp.Sample(image=form, question=sample.question)
        assert tiny.answer(one.image, one.question).token_ids == expected
    monkeypatch.chdir(tmp_path)
    found = interp.explain(tiny, "photo.png", sample.question)
    assert found.sample.id == "photo" and found.completion.token_ids == expected


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (7, "as a path, a file's content, an array or a PIL image, got int"),
        ([], "expected images, or None for text alone, got an empty list"),
        ("https://example.org/a.png", "download it first"),
        (np.zeros((3, 8, 9), np.uint8), r"\(height, width, 3 or 4\), got \(3, 8, 9\)"),
        (np.full((4, 4), 300), "pixels in 0..255"),
        (np.full((4, 4), 1.5), "pixels in 0..1"),
        (np.full((4, 4), np.nan), "pixels in 0..1"),
        (np.zeros((0, 4), np.uint8), "got"),
        ([1, 2], "got int"),
        (Path("nowhere.png"), "expected a readable image file"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(tiny, image, message):
    with pytest.raises(ValueError, match=message) as caught:
        interp.explain(tiny, image, "what?")
    assert "\n" not in str(caught.value)


def test_without_an_answer_a_text_is_asked_for(tiny, sample):
    bare = interp.Sample(image=sample.image, question=sample.question)
    with pytest.raises(ValueError, match=r"without an answer; pass completion=vlm\.answer"):
        interp.extract.ledger(tiny, bare)
    text = tiny.answer(bare.image, bare.question)
    own = interp.extract.ledger(tiny, bare, completion=text)
    given = interp.extract.ledger(tiny, bare, completion=text.text)
    assert (own.attrs["text_source"], given.attrs["text_source"]) == ("own", "given")
    assert interp.extract.ledger(tiny, sample).attrs["text_source"] == "reference"
    np.testing.assert_array_equal(own["logit"], given["logit"])
    wrong_texts = ((7, "as text, or as vlm.answer"), ("a<|im_end|>", "special tokens"))
    for wrong, message in wrong_texts:
        with pytest.raises(ValueError, match=message):
            interp.extract.ledger(tiny, bare, completion=wrong)


def test_a_cut_text_is_said(tiny, sample, caplog):
    with caplog.at_level(logging.WARNING), pytest.raises(ValueError, match="raise max_new_tokens"):
        interp.explain(tiny, sample.image, sample.question, max_new_tokens=3)
    assert "cut off after 3 tokens" in caplog.text
    (whole,) = tiny.answers([sample])
    for n, said in ((len(whole.token_ids) - 1, "no"), (60, "yes")):
        (text,) = tiny.answers([sample], max_new_tokens=n)
        ledger = interp.extract.ledger(tiny, sample, completion=text)
        assert ledger.attrs["text_is_complete"] == said
        title = ledger.vlm.plot(0).get_title()
        assert title.endswith("cut off at the limit") == (said == "no"), title


def test_a_model_that_somebody_holds_is_wrapped_and_not_changed(tiny, sample, explained):
    model, processor = tiny.model.train(), tiny.processor
    try:
        wrapped = interp.wrap(model, processor)
        assert model.training and wrapped.model is model and wrapped.processor is processor
        found = interp.explain(wrapped, sample.image, sample.question)
        assert model.training
    finally:
        model.eval()
    pd.testing.assert_frame_equal(
        found.paths.drop("evidence", errors="ignore"),
        explained.paths.drop(["evidence", "background"]),
    )
    assert repr(wrapped).count("\n") == 2 and "1,879,488 parameters" in repr(wrapped)
    template, processor.chat_template = processor.chat_template, None
    processor.tokenizer.chat_template = None
    try:
        with pytest.raises(ValueError, match="expected a chat template"):
            interp.wrap(model, processor)
        processor.tokenizer.chat_template = template
        assert interp.wrap(model, processor).processor.chat_template == template
        assert processor.chat_template is None
    finally:
        processor.chat_template, processor.tokenizer.chat_template = template, None
    with pytest.raises(ValueError, match="expected a model and its processor, got Qwen2_5_VLPro"):
        interp.wrap(processor, model)
    for options, message in (({"prompt": "loud"}, "a prompt of"), ({}, "images and text")):
        wrong = processor if options else processor.tokenizer
        with pytest.raises(ValueError, match=message):
            interp.wrap(model, wrong, **options)


def test_a_picture_finds_its_image_by_itself(tiny, sample):
    maps = interp.extract.maps(tiny, sample, kinds=("direct",), only="answer")
    over = maps.vlm.plot("answer")
    assert len(over.images) == 2 and len(over.patches) >= len(sample.boxes)
    assert over.get_title() == "the sample's reference text"
    assert over.figure.axes[1].get_ylabel() == "[logit, centered], where positive"
    assert len(maps.vlm.plot("answer", image=False).images) == 1
    alone = interp.Sample(image=Image.new("RGB", (64, 64)), question="what?", answer="7")
    orphan = interp.extract.maps(tiny, alone, kinds=("direct",), only="answer")
    del alone
    assert len(orphan.vlm.plot("answer").images) == 1
    plt.close("all")
