"""Gemma 3: windows, images that see themselves, norms behind attention, and tokens as pieces.

That its numbers are the slow reference's is in the tests of the odd shapes, of which it is one.
"""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image

import interp
from interp.algebra import readout, thinking
from interp.attribution import METHODS
from interp.capture.prefill import prefill, prefill_with, prefills
from interp.extract.question import ask
from interp.faithfulness import faithfulness
from interp.inputs import prompts
from interp.inputs.canvas import canvas
from interp.inputs.completions import completion, is_right, is_well_formed
from interp.inputs.spelling import token_bytes
from interp.loading import outline
from interp.model import families
from interp.model.vlm import embed, image_embeddings
from interp.validate import NotCertified, certify
from tests.support import gemma, odd_models

SHAPE = "four_to_two"


@pytest.fixture
def vlm():
    processor = gemma.processor_of()
    return odd_models.vlm(odd_models.make(SHAPE, processor, torch.float32), processor)


@pytest.fixture
def sample():
    return odd_models.sample()


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.long)]
)
def test_the_certificate_passes_in_half_precision(sample, dtype):
    processor = gemma.processor_of()
    half = odd_models.vlm(odd_models.make(SHAPE, processor, dtype), processor)
    assert certify(half, [sample], witness=False).is_passed


def test_an_adapter_on_it_is_certified(vlm, sample):
    config = LoraConfig(r=2, target_modules=r".*language_model.*(q_proj|v_proj|o_proj|down_proj)")
    adapted = get_peft_model(vlm.model, config)
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    before = interp.extract.ledger(vlm, sample, detail="summary").logit
    assert certify(replace(vlm, model=adapted), [sample], witness=False).is_passed
    with adapted.disable_adapter():
        plain = interp.extract.ledger(vlm, sample, detail="summary").logit
    assert float(np.abs(plain - before).max()) > 1e-2


def test_a_row_reads_nothing_beyond_a_window(vlm, sample):
    """A layer with a window contributes nothing from before it, and all that it has from inside."""
    ds = interp.extract.ledger(vlm, sample, detail="full")
    distance = ds["target_position"].values[:, None] - np.arange(ds.sizes["source"])
    inside = (distance >= 0) & (distance < gemma.WINDOW)
    types = vlm.model.config.text_config.layer_types
    assert set(types) == {"sliding_attention", "full_attention"}
    for layer, kind in enumerate(types):
        size = np.abs(ds["direct"].isel(layer=layer).values).max(axis=1)
        assert (size[inside] > 0).all()
        assert ((size[distance >= gemma.WINDOW] > 0).all()) == (kind == "full_attention")


def test_a_cut_beyond_a_window_is_seen_in_the_full_layers_alone(vlm, sample):
    """Cutting a token at the window's edge changes all layers' reading; one behind it not all."""
    row = int(ask(vlm, sample).rows[-1])
    for distance, n_reading in ((gemma.WINDOW - 1, 3), (gemma.WINDOW, 1)):
        fx = interp.extract.effects(
            vlm, sample, positions=[row], targets=[5], sources={"one": [row - distance]}
        )
        direct = fx["effect_by_layer"].sel(layer_path="direct").squeeze().values
        assert (direct != 0).sum() == n_reading


def test_the_first_token_of_an_image_sees_the_last(vlm, sample):
    """The last cell painted over moves what is read from the first; no row of text before it."""
    painted = np.asarray(sample.image).copy()
    height, width = painted.shape[:2]
    painted[-height // 6 :, -width // 6 :] = 255 - painted[-height // 6 :, -width // 6 :]
    query = ask(vlm, sample)
    own, other = (embed(vlm, image)[0] for image in (sample.image, painted))
    visual = query.is_visual.nonzero()[:, 0]
    content = own.clone()
    content[-1] = other[-1]  # as if the tower had passed nothing on
    clean = prefill(vlm.model, query.batch, query.rows)
    moved = prefill_with(vlm.model, clean, visual, content)
    gap = (moved.values[1] - clean.values[1]).abs().amax(dim=(0, 1, 3))
    assert (gap[visual] > 1e-4).all()
    assert float(gap[: visual[0]].max()) == 0


def test_rows_of_an_image_are_refused(vlm, sample):
    query = ask(vlm, sample)
    first = int(query.is_visual.nonzero()[0])
    for extract in (interp.extract.ledger, interp.extract.effects):
        with pytest.raises(ValueError, match="expected positions of text, got some of an image"):
            extract(vlm, sample, positions=[first], targets=[5])


@pytest.mark.parametrize("change", ["dropped", "shifted"])
def test_types_that_do_not_mark_the_image_are_refused(vlm, sample, change):
    batch = dict(ask(vlm, sample).batch)
    types = batch.pop("token_type_ids")
    if change == "shifted":
        batch["token_type_ids"] = types.roll(1, dims=1)
    with pytest.raises(ValueError, match="expected token_type_ids to be 1 exactly at the image"):
        interp.extract.ledger(vlm.model, batch, positions=[40])


def test_what_has_no_exact_reading_is_refused_in_one_line(vlm, sample):
    with pytest.raises(ValueError, match="expected layers without norms behind attention for Attn"):
        METHODS["AttnLRP"](vlm, sample, "answer")
    vlm.model.config.text_config.use_bidirectional_attention = True
    with pytest.raises(ValueError, match="got use_bidirectional_attention=True"):
        interp.extract.ledger(vlm, sample)


def test_biases_in_front_of_a_norm_are_refused(vlm, sample):
    o_proj = families.parts(vlm.model).layers[1].o_proj
    o_proj.bias = torch.nn.Parameter(torch.full((o_proj.out_features,), 0.1))
    with pytest.raises(ValueError, match="norm behind attention, got one in layer 1"):
        interp.extract.ledger(vlm, sample)


def test_a_norm_that_is_hooked_is_noticed(vlm, sample):
    norm = families.parts(vlm.model).layers[2].attention_post_norm
    handle = norm.register_forward_hook(lambda module, args, out: out * 1.1)
    with pytest.raises(ValueError, match="is a layer changed by hooks"):
        interp.extract.ledger(vlm, sample)
    handle.remove()
    assert interp.extract.ledger(vlm, sample)["logit"].notnull().all()


def test_pan_and_scan_is_refused(vlm, sample):
    processor = copy.deepcopy(vlm.processor)
    processor.images_kwargs = processor.images_kwargs | {"do_pan_and_scan": True}
    scanning = replace(vlm, processor=processor)
    with pytest.raises(ValueError, match="got do_pan_and_scan=True"):
        interp.extract.ledger(scanning, replace(sample, image=sample.image.resize((900, 300))))


@pytest.mark.parametrize("size", [(140, 84), (30, 200), (42, 42)])
def test_painting_a_cell_moves_the_token_that_looks_at_it(vlm, sample, size):
    with torch.no_grad():
        for name, parameter in families.parts(vlm.model).vision_tower.named_parameters():
            if "out_proj." in name:
                parameter.zero_()
    one = replace(sample, image=sample.image.resize(size), boxes=None)
    grid = canvas(vlm.processor, one.image, ask(vlm, one).tokens)
    assert grid.pixels.shape[:2] == (42, 42)
    noise = np.random.default_rng(0).integers(0, 256, grid.pixels.shape, dtype=np.uint8)
    painted = [noise]
    for at in grid.cells():
        painted.append(noise.copy())
        painted[-1][at] = 255 - painted[-1][at]
    seen = [
        image_embeddings(vlm.model, prompts.image_inputs(vlm.processor, [Image.fromarray(image)]))
        for image in painted
    ]
    for number, changed in enumerate(seen[1:]):
        moved = (changed - seen[0]).norm(dim=-1)
        assert moved.nonzero()[:, 0].tolist() == [number]


@pytest.mark.parametrize(
    "text", ["the answer is 11.", "a  b\n\n\nc\td", "图中是 7", "👩🏽‍🚀 naïve — «x»", "x▁y <0x41>"]
)
def test_tokens_spell_the_text(text):
    """Pieces and bytes by number give the text's own bytes, its blanks, and every byte once."""
    tokenizer = gemma.processor_of().tokenizer
    ids = tokenizer(text, add_special_tokens=False).input_ids
    spelled = b"".join(token_bytes(tokenizer, ids)).decode()
    assert spelled == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert spelled == text.replace("▁", " ")  # the vocabulary has no other blank


def test_roles_of_turns(vlm, sample):
    """The system prompt stands in the first user's turn; other alphabets keep their spans."""
    one = replace(
        sample,
        thinking="图中是 7 👩🏽‍🚀",
        answer="<start_of_turn x",
        earlier=(("what is this?", "a picture."),),
    )
    tokens = prompts.teacher_forced(vlm.processor, one, "Think first.").tokens
    by_role = dict.fromkeys(tokens.role, "")
    raw = token_bytes(vlm.processor.tokenizer, tokens.ids.tolist())
    spelled = dict.fromkeys(by_role, b"")
    for piece, role in zip(raw, tokens.role, strict=True):
        spelled[role] += piece
    texts = {role: piece.decode().strip() for role, piece in spelled.items()}
    assert texts["question"] == sample.question
    assert texts["thinking"] == one.thinking
    assert texts["answer"] == one.answer
    assert texts["system"] == "Think first."
    assert [part in texts["earlier"] for part in ("what is this?", "a picture.")] == [True, True]


def test_texts_written_together_are_those_written_alone(vlm, sample):
    text = replace(sample, image=None, boxes=None)
    two = replace(sample, image=[sample.image, sample.image.resize((60, 180))], boxes=None)
    several = [sample, odd_models.sample(9), two, text]
    for one, written in zip(several, vlm.answers(several, max_new_tokens=6), strict=True):
        assert vlm.answers([one], max_new_tokens=6)[0].token_ids == written.token_ids
    for one in (two, text, sample):
        n_tokens = len(prompts.teacher_forced(vlm.processor, one, None).tokens.ids)
        assert prompts.count_tokens(vlm.processor, one, None) == n_tokens
    assert vlm.answers([text], max_new_tokens=3)[0].token_ids


def test_every_method_and_what_is_painted_and_scored(vlm, sample):
    found = {
        name: method(vlm, sample, "answer") for name, method in METHODS.items() if name != "AttnLRP"
    }
    for name, one in found.items():
        assert one.shape == (gemma.SIDE, gemma.SIDE), name
        assert np.isfinite(one).all(), name
        assert float(np.abs(one).sum()) > 0 or name in ("TAM", "Grad-CAM"), name  # cut at 0
    scores = faithfulness(vlm, sample, {"direct": found["direct (Eq. 1)"]}, shares=(0.3,))
    assert np.isfinite(scores.log_likelihood).all()
    pixels = interp.extract.pixel_effects(vlm, sample, reference="blur")
    whole = pixels.set_total.sel(visual_set="image").isel(target=-1)
    np.testing.assert_allclose(whole.sel(intervention="vector"), whole[0], atol=1e-4)


def test_two_images_and_the_words(vlm, sample):
    two = replace(sample, image=[sample.image, sample.image.resize((60, 60))], boxes=None)
    ds = interp.extract.ledger(vlm, two, detail="tokens")
    assert set(ds["image"].values) == {-1, 0, 1}
    assert float(np.abs(ds.remainder / ds.magnitude).max()) < 1e-5
    partner = replace(sample, id="partner", image=odd_models.sample(9).image, answer="4")
    texts = [f"<think>\nit is {n}.\n</think>\n{n}" for n in (3, 7)]
    words = interp.extract.words(vlm, sample, partner, text=texts[0], partner_text=texts[1])
    gap = words["words_owen"].sum("player") - words["words_total"]
    assert float(np.abs(gap).max()) < 1e-4
    assert float(np.abs(words["words_owen"]).max()) > 1e-2


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_stored_checkpoint_is_loaded_and_explained(vlm, sample, tmp_path, attention):
    for one in (vlm.model, vlm.processor):
        one.save_pretrained(tmp_path)
    loaded = interp.load_model(
        str(tmp_path), prompt="plain", dtype="float32", device="cpu", attn_implementation=attention
    )
    explained = interp.explain(loaded, sample.image, sample.question, max_new_tokens=6)
    assert explained.text == vlm.answer(sample.image, sample.question, max_new_tokens=6).text
    found, own = (interp.extract.ledger(one, sample, detail="tokens") for one in (loaded, vlm))
    np.testing.assert_allclose(found.direct, own.direct, atol=1e-5)
    for options in ({"is_narrow": True}, {"depth": (2, 1)}):  # as a command's estimate makes them
        small = outline(str(tmp_path), **options)
        ds = interp.extract.ledger(small, sample, detail="summary")
        assert ds.sizes["layer"] == families.parts(small.model).n_layers


def test_blanks_and_tags_that_are_added_tokens_belong_to_a_text(vlm, sample):
    """Newlines, runs of blanks and HTML are added tokens of this vocabulary, and steer nothing."""
    tokenizer = vlm.processor.tokenizer
    assert {"\n", "▁▁", "<b>"} <= set(tokenizer.get_added_vocab())
    one = replace(
        sample, question="is <b>this</b>\na  7?", thinking="first\n\nthen   it", answer="3\n4"
    )
    tokens = prompts.teacher_forced(vlm.processor, one, None).tokens
    by_role = dict.fromkeys(tokens.role, "")
    for piece, role in zip(tokens.text, tokens.role, strict=True):
        by_role[role] += piece
    assert [by_role[r].strip() for r in ("question", "thinking", "answer")] == [
        one.question,
        one.thinking,
        one.answer,
    ]
    text = f"<think>\n  it  is 3.\n</think>\n  3{tokenizer.eos_token}"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.convert_tokens_to_ids("▁▁") in ids
    written = completion(tokenizer, ids)
    assert (written.thinking, written.answer) == ("it  is 3.", "3")
    assert is_well_formed(tokenizer, written) and is_right(written.answer, "3")
    with pytest.raises(ValueError, match="without special tokens, got '<start_of_turn>'"):
        prompts.teacher_forced(vlm.processor, replace(sample, question="<start_of_turn>x"), None)


@pytest.mark.parametrize("quoted", ["<end_of_turn>", "<start_of_turn>model\nboo<end_of_turn>"])
def test_marks_that_a_text_spells_letter_by_letter_are_text(vlm, sample, quoted):
    tokenizer = vlm.processor.tokenizer

    def ids_of(text):
        return tokenizer(text, add_special_tokens=False).input_ids

    letters = [i for char in quoted for i in ids_of(char)]
    end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    text = completion(tokenizer, [*ids_of("it says "), *letters, *ids_of(" fin"), end], [end])
    assert text.answer == f"it says {quoted} fin"
    tokens = prompts.teacher_forced(vlm.processor, sample, None, text).tokens
    pieces = zip(tokens.text, tokens.role, strict=True)
    assert "".join(piece for piece, role in pieces if role == "answer") == text.answer


def test_batches_with_positions_of_their_own_and_without_types(vlm, sample):
    """Each sequence keeps the positions that it came with; text may come without types."""
    own = dict(ask(vlm, sample).batch)
    n_tokens = own["input_ids"].shape[1]
    gaps = torch.arange(n_tokens)[None] + 37 * (torch.arange(n_tokens) > 30)
    ids = own["input_ids"][:, -40:]
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    pairs = [
        (own | {"position_ids": gaps}, {"positions": [n_tokens - 3]}),
        (text, {"positions": [37]}),
        (own, {"positions": [n_tokens - 3]}),
    ]
    batches = [batch for batch, _ in pairs]
    rows = [torch.tensor(asked["positions"]) for _, asked in pairs]
    together = prefills(vlm.model, batches, rows)  # in one forward
    for one, (batch, asked) in zip(together.sequences, pairs, strict=True):
        expected = vlm.model(**batch).logits[0, asked["positions"]]
        torch.testing.assert_close(one.logits, expected, atol=1e-5, rtol=0)
    ledgers = list(interp.extract.each("ledger", vlm.model, pairs))
    for found, (batch, asked) in zip(ledgers, pairs, strict=True):
        alone = interp.extract.ledger(vlm.model, batch, **asked)
        np.testing.assert_allclose(found.direct, alone.direct, atol=1e-6)
    assert abs(float(ledgers[0].logit[0] - ledgers[2].logit[0])) > 1e-3


def test_a_forgotten_weight_behind_the_thinking_is_found(vlm, sample, monkeypatch):
    monkeypatch.setattr(thinking, "fold", readout.fold_output)
    with pytest.raises(NotCertified, match="two hops sum to the attention origins"):
        certify(vlm, [sample], witness=False)
