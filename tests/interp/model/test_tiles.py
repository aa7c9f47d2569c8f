"""Images that are cut into tiles: where their tokens look, and all that is done with them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file

import interp
from interp.attribution import METHODS
from interp.extract.question import ask
from interp.faithfulness import faithfulness
from interp.inputs import prompts
from interp.inputs.canvas import canvas
from interp.inputs.completions import completion
from interp.loading import outline
from interp.maps.grid import arranged, on_grid
from interp.model import families
from interp.model.vlm import embed, image_embeddings
from interp.validate import certify
from tests.support import odd_models, tiled

SIZES = [(140, 84), (60, 60), (30, 200), (200, 30), (333, 101), (28, 28), (84, 140), (500, 400)]


@pytest.fixture(params=list(odd_models.TILED))
def vlm(request):
    processor = odd_models.processor_of(request.param)
    return odd_models.vlm(odd_models.make(request.param, processor, torch.float32), processor)


@pytest.fixture
def sample():
    return odd_models.sample()


def resized(sample, size):
    return replace(sample, image=sample.image.resize(size), boxes=None)


@pytest.mark.parametrize("family", list(tiled.FAMILIES))
@pytest.mark.parametrize("size", SIZES)
def test_every_token_of_every_size_has_its_place(family, size, sample):
    """The table counts what the processor writes, whichever tiles it chooses."""
    processor, one = tiled.processor_of(family), resized(sample, size)
    made = prompts.teacher_forced(processor, one, None)
    tokens = made.tokens
    assert prompts.count_tokens(processor, one, None) == len(tokens.ids)
    assert tokens.role.count("image") == int((tokens.ids == processor.image_token_id).sum())
    placed = [*zip(tokens.view, tokens.row, tokens.column, strict=True)]
    placed = [at for at, role in zip(placed, tokens.role, strict=True) if role == "image"]
    with_pixels = [at for at in placed if at[1] >= 0]
    assert len(set(with_pixels)) == len(with_pixels)  # no two tokens in one cell of a view
    shapes = np.array(tokens.grid).reshape(-1, 2)
    assert len(with_pixels) == int(shapes.prod(axis=1).sum())
    if family == "llava_onevision":  # a token behind every line of the mosaic, and no other
        assert len(placed) - len(with_pixels) == shapes[0, 0]
    else:
        assert placed == with_pixels


def unmixed(model):
    """The model with a tower where no patch reads another."""
    with torch.no_grad():
        for name, parameter in families.parts(model).vision_tower.named_parameters():
            if any(part in name for part in ("projection_layer.", "out_proj.")):
                parameter.zero_()
    return model


@pytest.mark.parametrize("size", [(140, 84), (84, 140), (60, 60)])
def test_painting_a_cell_moves_the_token_that_looks_at_it(vlm, sample, size):
    """In each view the token whose embedding moves most is the one that the table names."""
    unmixed(vlm.model)
    one = resized(sample, size)
    tokens = ask(vlm, one).tokens
    grid = canvas(vlm.processor, one.image, tokens)
    is_visual = np.array(tokens.role) == "image"
    view, row, column = (values[is_visual] for values in (tokens.view, tokens.row, tokens.column))
    noise = np.random.default_rng(0).integers(0, 256, grid.pixels.shape, dtype=np.uint8)
    painted = [Image.fromarray(noise)]
    for at in grid.cells():
        one_cell = noise.copy()
        # The inside of a cell alone: what is resized smears over its border.
        inside = tuple(
            slice(s.start + (s.stop - s.start) // 4, s.stop - (s.stop - s.start) // 4) for s in at
        )
        one_cell[inside] = 255 - one_cell[inside]
        painted.append(Image.fromarray(one_cell))
    seen = [
        image_embeddings(vlm.model, prompts.image_inputs(vlm.processor, [image]))
        for image in painted
    ]
    for number, changed in enumerate(seen[1:]):
        r, c = divmod(number, grid.shape[1])
        moved = (changed - seen[0]).norm(dim=-1).numpy()
        assert (moved[row < 0] == 0).all()  # the ends of lines stand for no pixels
        fine = np.where((view == 0) & (row >= 0), moved, 0)
        assert (row[fine.argmax()], column[fine.argmax()]) == (r, c)
        if vlm.model.config.model_type != "llava_onevision":  # whole cells: nobody else moves
            assert (fine > 0).sum() == 1
        if (view == 1).any():
            coarse = np.where(view == 1, moved, 0)
            shape = row[view == 1].max() + 1, column[view == 1].max() + 1
            middle = (r + 0.5) / grid.shape[0] * shape[0], (c + 0.5) / grid.shape[1] * shape[1]
            found = row[coarse.argmax()] + 0.5, column[coarse.argmax()] + 0.5
            assert np.abs(np.subtract(found, middle)).max() < 1


def test_a_coarse_cell_is_spread_by_area():
    view, row = np.array([0] * 6 + [1] * 2), np.array([0, 0, 0, 1, 1, 1, 0, 0])
    column = np.array([0, 1, 2, 0, 1, 2, 0, 1])
    values = np.array([1.0, 2, 3, 4, 5, 6, 12, 24])
    # Of 1 x 2 coarse cells over 2 x 3: the middle column is half of each.
    expected = np.array([[1 + 4, 2 + 2 + 4, 3 + 8], [4 + 4, 5 + 2 + 4, 6 + 8]])
    np.testing.assert_allclose(arranged(values, view, row, column), expected)
    nowhere = np.append(row, -1)
    more = arranged(np.append(values, 99.0), np.append(view, 0), nowhere, np.append(column, -1))
    np.testing.assert_allclose(more, expected)
    with pytest.raises(ValueError, match="expected visual tokens whose place on the image is know"):
        arranged(values[:1], view[:1], np.array([-1]), np.array([-1]))


def test_a_map_holds_all_that_tokens_with_pixels_contribute(vlm, sample):
    ds = interp.extract.ledger(vlm, sample, detail="tokens")
    direct = ds.direct.isel(target=-1)
    direct = direct.sum([dim for dim in direct.dims if dim != "source"])
    grid = on_grid(direct)
    has_pixels = ds["row"].values >= 0
    assert float(grid.sum()) == pytest.approx(float(direct[has_pixels].sum()), abs=1e-6)
    assert grid.shape == tuple(ask(vlm, sample).tokens.grid[:2])
    assert set(np.unique(ds["view"].values)) == {-1, 0, 1}


def test_evidence_is_found_in_every_view(vlm, sample):
    tokens = ask(vlm, sample).tokens
    for view in (0, 1):
        is_here = tokens.view == view
        assert 0 < tokens.is_evidence[is_here].sum() < is_here.sum()
    area = tokens.box_overlap[tokens.view == 1].mean()
    boxes = (sample.boxes[:, 2:] - sample.boxes[:, :2]).prod(axis=1).sum()
    assert area == pytest.approx(boxes, abs=1e-6)  # two boxes that do not overlap


def test_every_method_and_what_is_painted_and_scored(vlm, sample):
    is_anyres = vlm.model.config.model_type == "llava_onevision"
    shape = tuple(ask(vlm, sample).tokens.grid[:2])
    found = {}
    for name, method in METHODS.items():
        if is_anyres and name == "input × gradient":
            with pytest.raises(ValueError, match="expected visual tokens with pixels of their own"):
                method(vlm, sample, "answer")
            continue
        found[name] = method(vlm, sample, "answer")
        assert found[name].shape == shape
        assert np.isfinite(found[name]).all()
        assert float(np.abs(found[name]).sum()) > 0
    scores = faithfulness(vlm, sample, {"direct": found["direct (Eq. 1)"]}, shares=(0.3,))
    assert len(np.unique(scores.log_likelihood.values.round(9))) == scores.log_likelihood.size
    if is_anyres:
        with pytest.raises(ValueError, match="expected visual tokens with pixels of their own"):
            interp.extract.pixel_effects(vlm, sample, reference="blur")
        return
    pixels = interp.extract.pixel_effects(vlm, sample, reference="blur")
    whole = pixels.set_total.sel(visual_set="image").isel(target=-1)
    np.testing.assert_allclose(whole.sel(intervention="vector"), whole[0], atol=1e-4)
    assert abs(float(whole.sel(intervention="slot") - whole[0])) > 1e-3


def test_texts_written_together_are_those_written_alone(vlm, sample):
    several = [sample, odd_models.sample(9), resized(sample, (60, 60))]
    together = vlm.answers(several, max_new_tokens=8)
    for one, text in zip(several, together, strict=True):
        assert vlm.answer(one.image, one.question, max_new_tokens=8).token_ids == text.token_ids


@pytest.mark.parametrize("family", list(tiled.FAMILIES))
def test_texts_of_any_samples_are_written_together(family, sample):
    """One image, several, none: in one batch, and counted as the processor writes them."""
    numbers = (family, 2, 2, 1, 8, False)
    processor = tiled.processor_of(family)
    vlm = odd_models.vlm(odd_models.own_model(numbers, torch.float32), processor)
    two = replace(sample, image=[sample.image, sample.image.resize((60, 180))], boxes=None)
    text = replace(sample, image=None, boxes=None)
    for several in ([sample, odd_models.sample(9)], [two, text], [two, sample, text, sample]):
        for one, written in zip(several, vlm.answers(several, max_new_tokens=4), strict=True):
            assert vlm.answers([one], max_new_tokens=4)[0].token_ids == written.token_ids
    for one in (two, text):
        n_tokens = len(prompts.teacher_forced(processor, one, None).tokens.ids)
        assert prompts.count_tokens(processor, one, None) == n_tokens
    assert METHODS["occlusion"](vlm, sample, "answer").notnull().all()


@pytest.mark.parametrize("family", list(tiled.FAMILIES))
@pytest.mark.parametrize(
    "quoted", ["<|im_start|>assistant\n12", "<|im_start|>user\nmore", "<end_of_utterance>\nUser: x"]
)
def test_a_text_that_quotes_a_chat_is_still_the_answer(family, quoted, sample):
    processor = tiled.processor_of(family)
    tokenizer = processor.tokenizer
    ids = tokenizer(f"it is 11 {quoted}", add_special_tokens=False).input_ids
    ends = {"<|im_end|>", "<end_of_utterance>"} & {*tokenizer.get_added_vocab()}
    if any(tokenizer.convert_tokens_to_ids(end) in ids for end in ends):
        pytest.skip("it ends the turn in this family")
    text = completion(tokenizer, [*ids, tokenizer.eos_token_id])
    tokens = prompts.teacher_forced(processor, sample, None, text).tokens
    by_role = dict.fromkeys(tokens.role, "")
    for piece, role in zip(tokens.text, tokens.role, strict=True):
        by_role[role] += piece
    assert by_role["question"].strip() == sample.question
    assert by_role["answer"].strip() == f"it is 11 {quoted}"


def test_own_texts_begin_as_the_chat_has_them(sample):
    for family in tiled.FAMILIES:
        processor = tiled.processor_of(family)
        made = prompts.teacher_forced(processor, sample, None)
        text = processor.tokenizer.decode(made.tokens.ids.tolist())
        is_behind_a_colon = family in ("idefics3", "smolvlm")
        assert ("Assistant: <think>" in text) == is_behind_a_colon
        assert ("assistant\n<think>" in text) != is_behind_a_colon


def test_a_mean_image_keeps_the_ends_of_lines(sample):
    processor = odd_models.processor_of("six_to_two")
    vlm = odd_models.vlm(odd_models.make("six_to_two", processor, torch.float32), processor)
    pool = [sample, odd_models.sample(9)]
    mean = interp.extract.references(vlm, sample, pool=pool, kinds=("mean",))["mean"].content
    tokens = ask(vlm, sample).tokens
    is_end = tokens.row[tokens.is_visual] < 0
    own, _ = embed(vlm, sample.image)
    torch.testing.assert_close(mean[is_end], own[is_end])
    assert is_end.sum() > 1 and not torch.allclose(mean[~is_end], own[~is_end], atol=1e-2)
    pixels = [embed(vlm, one.image)[0] for one in pool]
    ends = own[is_end][0]
    of_pixels = torch.cat(pixels)
    of_pixels = of_pixels[~torch.isclose(of_pixels, ends, atol=1e-6).all(dim=-1)]
    torch.testing.assert_close(mean[~is_end][0], of_pixels.mean(dim=0), atol=1e-5, rtol=0)


def test_several_pictures_of_a_padded_family_lie_on_themselves(sample):
    """Cells of padding alone are on no map; painting a third of the picture moves that third."""
    processor = odd_models.processor_of("six_to_two")
    vlm = odd_models.vlm(odd_models.make("six_to_two", processor, torch.float32), processor)
    unmixed(vlm.model)
    wide, tall = Image.new("RGB", (180, 60)), Image.new("RGB", (60, 180))
    for picture, shape in ((wide, (1, 3)), (tall, (3, 1))):
        two = replace(sample, image=[sample.image, picture], boxes=None)
        tokens = ask(vlm, two).tokens
        assert tokens.grid[2:] == shape
        is_second = tokens.image[tokens.is_visual] == 1
        places = np.stack([tokens.row, tokens.column])[:, tokens.is_visual][:, is_second]
        plain, _ = embed(vlm, sample.image, picture)
        for third in range(3):
            painted = np.asarray(picture).copy()
            at = slice(third * 60, third * 60 + 60)
            painted[:, at] = 255 if shape == (1, 3) else painted[:, at]
            painted[at] = 255 if shape == (3, 1) else painted[at]
            moved = (embed(vlm, sample.image, painted)[0] - plain).norm(dim=-1)[is_second]
            assert places[:, int(moved.argmax())].max() == third


def test_borders_are_those_of_each_view(vlm, sample):
    if vlm.model.config.model_type == "llava_onevision":
        pytest.skip("it has no pixel effects")
    found = interp.extract.pixel_effects(vlm, sample, reference="blur")
    rows, columns = ask(vlm, sample).tokens.grid[:2]
    inside = (rows - 2) * (columns - 2)  # the small view is 2 x 2: border alone
    assert float(found.border_area) == pytest.approx(1 - inside / (rows * columns + 4))


def test_several_images_and_turns(vlm, sample):
    two = replace(sample, image=[sample.image, sample.image.resize((60, 60))], boxes=None)
    two = replace(two, earlier=(("what is this?", "a picture."),))
    ds = interp.extract.ledger(vlm, two, detail="tokens")
    assert set(ds["image"].values) == {-1, 0, 1}
    assert float(np.abs(ds.remainder / ds.magnitude).max()) < 1e-5
    roles = ds["source_role"].values
    text = {role: "".join(ds["source_token"].values[roles == role]) for role in set(roles)}
    assert text["question"].strip() == sample.question
    assert [part in text["earlier"] for part in ("what is this?", "a picture.")] == [True, True]
    for number in (0, 1):
        assert float(np.abs(interp.maps.token_map(ds, image=number)).sum()) > 0
    refs = interp.extract.references(vlm, two, kinds=("blur",))
    nodes = interp.extract.node_effects(vlm, two, references=refs, sources=["image 0", "image 1"])
    assert np.isfinite(nodes.total).all()


def test_a_bare_batch_is_exact_and_has_no_map(vlm, sample):
    query = ask(vlm, sample)
    row = int(query.rows[-1])
    ds = interp.extract.ledger(vlm.model, query.batch, positions=[row], detail="tokens")
    mine = interp.extract.ledger(vlm, sample, detail="tokens").isel(target=[-1])
    np.testing.assert_allclose(ds.direct, mine.direct, atol=1e-6)
    if "image_grid_thw" not in query.batch:
        with pytest.raises(ValueError, match="ask with a VLM and a sample"):
            interp.maps.token_map(ds, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.pop("pixel_values"), "expected pixel_values"),
        (lambda b: b.update(input_ids=b["input_ids"][:, 9:]), "image tokens|do not match|shape"),
        (lambda b: b.update(pixel_values=b["pixel_values"][..., :1, :, :, :]), "tokens|tiles"),
    ],
)
def test_images_that_are_not_those_of_the_tokens_are_refused(vlm, sample, change, message):
    batch = dict(ask(vlm, sample).batch)
    change(batch)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    if "tiles" in message and vlm.model.config.model_type != "idefics3":
        batch["pixel_values"] = batch["pixel_values"][:1]
    with pytest.raises((ValueError, RuntimeError), match=message):
        interp.extract.ledger(vlm.model, batch, positions=[batch["input_ids"].shape[1] - 3])


def test_smolvlm_is_certified_too(sample):
    pytest.importorskip("num2words")
    model = odd_models.own_model(("smolvlm", 2, 4, 2, 8, False), torch.float32)
    vlm = odd_models.vlm(model, tiled.processor_of("smolvlm"))
    assert certify(vlm, [sample], witness=False).is_passed


def test_a_stored_checkpoint_is_loaded_and_explained(vlm, sample, tmp_path):
    vlm.model.save_pretrained(tmp_path)
    vlm.processor.save_pretrained(tmp_path)
    loaded = interp.load_model(str(tmp_path), prompt="plain", dtype="float32", device="cpu")
    explained = interp.explain(loaded, sample.image, sample.question, max_new_tokens=6)
    assert explained.text == vlm.answer(sample.image, sample.question, max_new_tokens=6).text
    assert explained.map.shape == tuple(ask(vlm, sample).tokens.grid[:2])
    places = explained.top_sources(400)  # no two visual tokens are said to be in one place
    places = places[(places.role == "image") & (places.row >= 0)]
    assert not places.duplicated(["view", "row", "column"]).any()
    assert places.duplicated(["row", "column"]).any()
    for options in ({"is_narrow": True}, {"depth": (1, 1)}):  # as a command's estimate makes them
        small = outline(str(tmp_path), **options)
        ds = interp.extract.ledger(small, sample, detail="summary")
        assert ds.sizes["layer"] == families.parts(small.model).n_layers
        assert ds.sizes["target"] == len(ask(vlm, sample).rows)
    with pytest.raises(ValueError, match="which cuts them into tiles; leave both out"):
        interp.load_model(str(tmp_path), max_pixels=9999)


@pytest.mark.parametrize("shape", ["five_to_one", "six_to_two"])
def test_adapters_of_an_older_transformers_load(shape, processor, sample, tmp_path):
    model = odd_models.make(shape, processor, torch.float32)
    for one in (model, processor):
        one.save_pretrained(tmp_path / "base")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=r".*language_model.*q_proj"))
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    new, old = "base_model.model.model.language_model.", "base_model.model.language_model.model."
    renamed = {key.replace(new, old): value for key, value in load_file(weights).items()}
    assert all(key.startswith(old) for key in renamed)
    save_file(renamed, weights, metadata={"format": "pt"})
    options = {"prompt": "plain", "dtype": "float32", "device": "cpu"}
    loaded = interp.load_model(str(tmp_path / "base"), adapter=str(tmp_path / "adapter"), **options)
    own = odd_models.vlm(adapted, processor)
    found, expected = (
        interp.extract.ledger(one, sample, detail="summary") for one in (loaded, own)
    )
    np.testing.assert_allclose(found.logit, expected.logit, atol=1e-5)
    bare = interp.load_model(str(tmp_path / "base"), **options)
    without = interp.extract.ledger(bare, sample, detail="summary")
    assert float(np.abs(without.logit - expected.logit).max()) > 1e-2


def test_a_picture_with_fewer_pixels_than_cells_is_not_painted(sample):
    processor = odd_models.processor_of("six_to_two")
    vlm = odd_models.vlm(odd_models.make("six_to_two", processor, torch.float32), processor)
    speck = replace(sample, image=sample.image.resize((3, 2)), boxes=None)
    assert interp.extract.ledger(vlm, speck, detail="summary").logit.notnull().all()
    with pytest.raises(ValueError, match="one for each cell, got 3 x 2; enlarge it"):
        METHODS["occlusion"](vlm, speck, "answer")
