"""Several images, text alone, and earlier turns: every call, in both of its forms."""

import numpy as np
import pytest
import torch
import xarray as xr

import interp
from interp import extract
from interp.attribution import METHODS
from interp.model.vlm import PROMPTS
from tests.support import reference

TURNS = (("what is at the top left?", "a red 3"), ("and below it?", "nothing"))


@pytest.fixture(scope="module")
def scenes():
    """Two embedded scenes of different grids."""
    return interp.load_samples("digits", split="test", limit=2)


@pytest.fixture(scope="module")
def asked(scenes):
    """Samples by form."""
    first, second = scenes
    text = {"question": first.question, "thinking": "it is red.", "answer": "3"}
    return {
        "several": interp.Sample(image=[first.image, second.image], **text),
        "text alone": interp.Sample(**text),
        "earlier turns": interp.Sample(image=first.image, earlier=TURNS, **text),
        "all of it": interp.Sample(image=[second.image, first.image], earlier=TURNS, **text),
    }


def _by_the_processor(vlm, sample):
    """The prompt as the processor makes it from messages, without this package."""
    messages = []
    for number, (question, reply) in enumerate([*sample.earlier, (sample.question, None)]):
        content = [{"type": "text", "text": question}]
        if number == 0:
            content = [{"type": "image", "image": one} for one in sample.images] + content
        messages.append({"role": "user", "content": content})
        if reply is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": reply}]})
    return vlm.processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


FORMS = ("several", "text alone", "earlier turns", "all of it")


@pytest.mark.parametrize("form", FORMS)
def test_the_prompt_is_the_processors(tiny, asked, form):
    sample = asked[form]
    mine = interp.inputs.prompts.prompts(tiny.processor, [sample], PROMPTS[tiny.prompt])
    theirs = _by_the_processor(tiny, sample)
    for name in ("input_ids", "pixel_values", "image_grid_thw"):
        assert (name in mine) == (name in theirs)
        if name in mine:
            assert torch.equal(mine[name], theirs[name]), name


@pytest.mark.parametrize("form", FORMS)
def test_both_call_forms_give_one_ledger(tiny, asked, form):
    sample = asked[form]
    ledger = extract.ledger(tiny, sample)
    inputs = interp.inputs.prompts.teacher_forced(tiny.processor, sample, PROMPTS[tiny.prompt])
    positions = ledger["target_position"].values.tolist()
    bare = extract.ledger(tiny.model, dict(inputs.batch), positions=positions)
    np.testing.assert_allclose(bare["direct"], ledger["direct"], atol=1e-6)
    with torch.no_grad():
        logits = tiny.model(**inputs.batch).logits[0, positions].double()
    ids = ledger["target_token_id"].values
    own = logits[range(len(ids)), ids] - logits.mean(dim=-1)
    np.testing.assert_allclose(ledger["logit"], own, atol=1e-4)


def test_only_the_last_turn_is_explained(tiny, asked):
    ledger = extract.ledger(tiny, asked["all of it"])
    roles = ledger["source_role"].values
    earlier = "".join(ledger["source_token"].values[roles == "earlier"])
    assert earlier == "".join(text for turn in TURNS for text in turn)
    assert "".join(ledger["source_token"].values[roles == "question"]) == (
        asked["all of it"].question
    )
    assert set(ledger["target_role"].values) == {"thinking", "answer"}
    effects = extract.effects(tiny, asked["all of it"])
    assert {"earlier", "image 0", "image 1"} <= set(effects["source_set"].values)


def test_images_add_up_to_all_images(tiny, asked):
    sample = asked["several"]
    direct = extract.effects(tiny, sample)["effect"].sel(path="direct")
    alone = direct.sel(source_set=["image 0", "image 1"]).sum("source_set")
    np.testing.assert_allclose(alone, direct.sel(source_set="image"), atol=1e-5)
    ds = extract.maps(tiny, sample, kinds=("direct", "effect", "edge"))
    for kind in ds["kind"].values:
        parts = [ds.vlm.map("answer", kind, image=number) for number in (0, 1)]
        assert parts[0].shape == parts[1].shape[::-1]  # the scenes' grids are 3 x 5 and 5 x 3
        whole = ds["map"].sel(kind=kind).isel(target=-1)
        assert sum(float(part.sum()) for part in parts) == pytest.approx(float(whole.sum()))
    with pytest.raises(ValueError, match=r"2 images; say image= of \[0, 1\]"):
        ds.vlm.map("answer")
    ds.vlm.plot("answer", image=1)
    whole = [interp.maps.holistic(ds, "direct", image=number) for number in (0, 1)]
    assert whole[0].shape == whole[1].shape[::-1]
    np.testing.assert_array_equal(ds.vlm.map("answer", "holistic", image=1), whole[1])


def test_several_images_can_be_replaced(tiny, scenes, asked):
    sample = asked["several"]
    references = extract.references(tiny, sample, pool=scenes, kinds=("mean", "blur"))
    node = extract.node_effects(tiny, sample, references=references, sources=("image",))
    shares = extract.shapley(tiny, sample, references=references, sources=("image",))
    total = node["total"].isel(source_set=0)
    np.testing.assert_allclose(
        shares["total"].sel(norm="live").isel(source_set=0), total, atol=1e-4
    )
    # Against the model's own forward with the embeddings replaced, images in their order.
    inputs = interp.inputs.prompts.teacher_forced(tiny.processor, sample, PROMPTS[tiny.prompt])
    visual = np.flatnonzero(inputs.tokens.is_visual).tolist()
    replaced = dict(zip(visual, references["blur"].content, strict=True))
    runs = [reference.Clean(tiny.model, inputs.batch, one) for one in (None, replaced)]
    for k, row in enumerate(node["target_position"].values):
        target = int(node["target_token_id"][k])
        before, after = (float(r.logits[row, target] - r.logits[row].mean()) for r in runs)
        assert float(total.sel(reference="blur")[k]) == pytest.approx(before - after, abs=1e-3)
    with pytest.raises(ValueError, match="expected one image for kinds=\\['twin'\\], got 2"):
        extract.references(tiny, sample, kinds=("twin",))
    with pytest.raises(ValueError, match="got 0"):
        extract.references(tiny, asked["text alone"], kinds=("blur",))


def test_forms_ride_together(tiny, scenes, asked):
    mixed = [scenes[0], *asked.values()]
    for name in ("ledger", "effects"):
        for one, together in zip(mixed, extract.each(name, tiny, mixed), strict=True):
            alone = getattr(extract, name)(tiny, one)
            xr.testing.assert_allclose(together, alone, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_one_line_explains_it(tiny, asked, form, tmp_path):
    sample = asked[form]
    explained = interp.explain(
        tiny, sample.image, sample.question, earlier=sample.earlier, completion=sample.text
    )
    source_set = "image" if sample.images else "question"
    assert f"cannot read the {source_set}" in repr(explained)
    assert f"{source_set} in all" in explained.table()
    explained.save(tmp_path / "saved")
    assert (tmp_path / "saved/map.nc").exists() == bool(sample.images)
    if len(sample.images) > 1:
        assert explained.map.shape == explained.of(image=1).map.shape[::-1]
        with pytest.raises(ValueError, match=r"expected an image in 0..1, got 2"):
            explained.of(image=2)
    if not sample.images:
        with pytest.raises(ValueError, match="got 'image'"):
            explained.map  # noqa: B018 - a property that is refused


@pytest.mark.parametrize("method", [name for name in METHODS if name != "random"])
def test_methods_of_one_image_refuse_others_by_name(tiny, asked, method):
    sample = asked["several"]
    with pytest.raises(ValueError, match=r"expected (tokens of )?one image"):
        METHODS[method](tiny, sample, 0 if method.startswith("direct") else 3)


def test_what_cannot_be_is_refused_by_name(tiny, scenes):
    image = scenes[0].image
    with pytest.raises(ValueError, match="expected one image with boxes, got 2"):
        interp.Sample(image=[image, image], question="?", boxes=[[0, 0, 1, 1]])
    with pytest.raises(ValueError, match=r"expected earlier turns as \[\(question, reply\), …\]"):
        interp.Sample(image=image, question="?", earlier=["a", "b", "c"])
    with pytest.raises(ValueError, match="expected an earlier reply as text, got int"):
        interp.Sample(image=image, question="?", earlier=[("a", 3)])
    with pytest.raises(ValueError, match=r"got '<\|im_end\|>' in it"):
        tiny.answer(image, "?", earlier=[("a", "b<|im_end|>")])


def test_what_has_one_image_keeps_its_fingerprint(scenes):
    """The fingerprint seeds choices; it is that of runs on disk."""
    one = scenes[0]
    alone = interp.Sample(image=one.image, question="q", answer="a")
    listed = interp.Sample(image=[one.image], question="q", answer="a")
    turned = interp.Sample(image=one.image, question="q", answer="a", earlier=[("a", "b")])
    twice = interp.Sample(image=[one.image] * 2, question="q", answer="a")
    assert alone.fingerprint == listed.fingerprint
    assert len({alone.fingerprint, turned.fingerprint, twice.fingerprint}) == 3
