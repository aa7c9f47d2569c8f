"""Through the words: the tests that METHODS.md 3.7 asks for, in its order."""

from itertools import product

import numpy as np
import pytest
import torch

import interp
from interp import extract
from interp.algebra import words as algebra
from interp.algebra.readout import gauge_rows
from interp.extract.two_images import Context, four_paths, play
from interp.extract.word_games import alike, prepare
from interp.extract.words import played_games
from interp.inputs import prompts
from interp.inputs.outcomes import words_of
from interp.model import families
from interp.model.vlm import PROMPTS, embed
from tests.support import odd_models, planted, reference
from tests.support.odd_models import batch

GAUGES, NORMS = ("contrast", "centered"), ("live", "frozen")


# ------------------------------------------------------------------- one model, texts of any words


def behind(inputs: dict, ids: list[int]) -> dict:
    return dict(prompts.extended(inputs, ids))


def with_other_pixels(inputs: dict, seed: int = 1) -> dict:
    torch.manual_seed(seed)
    return dict(inputs) | {"pixel_values": torch.randn_like(inputs["pixel_values"])}


def context(inputs: dict, ids: list[int]) -> Context:
    own = behind(inputs, ids)
    row = own["input_ids"].shape[1] - 1
    return Context(own, behind(with_other_pixels(inputs), ids), torch.tensor([row]))


TEXTS = [20, 31, 25], [22, 31, 40, 41, 25]  # of other words, number and places
Y, FOIL = 33, 47


@pytest.fixture(scope="module", params=list(odd_models.SHAPES))
def random_game(request):
    """A random model in float64, and two texts behind one prompt with two images."""
    processor = odd_models.processor_of(request.param)
    model = odd_models.make(request.param, processor)
    inputs = batch(processor)
    return model, [context(inputs, ids) for ids in TEXTS]


@pytest.fixture(scope="module")
def slow_runs(random_game):
    """Own and partner's image behind each text, forwards of the slow reference."""
    model, contexts = random_game
    return [(reference.Clean(model, c.own), reference.Clean(model, c.partner)) for c in contexts]


def head_row(model, gauge: str):
    target, foil = torch.tensor([Y]), torch.tensor([FOIL])
    return gauge_rows(families.parts(model).output_embedding, target, gauge, foil)[0]


@pytest.mark.parametrize("gauge", GAUGES)
def test_corners_are_plain_forwards_and_shares_sum(random_game, gauge):
    model, contexts = random_game
    own, partner = ([one] for one in play(model, contexts))
    v = four_paths(model, own, partner, head_row(model, gauge))["pattern and values"]
    for side, one in ((1, contexts[0]), (0, contexts[1])):
        for image, inputs in ((1, one.own), (0, one.partner)):
            with torch.no_grad():
                logits = model(**inputs).logits[0, -1]
            shift = logits[FOIL] if gauge == "contrast" else logits.mean()
            corner = v[image, image, image, side, 0]
            assert corner == pytest.approx(
                float(logits[Y] - shift), abs=1e-6 * float(logits.abs().sum())
            )
    found = algebra.shares(v)
    assert found.total.abs().min() > 1e-3
    for values in (found.owen, found.shapley):
        torch.testing.assert_close(values.sum(dim=0), found.total, atol=1e-9, rtol=1e-9)
    half = (v[1, 1, 1, 1] - v[1, 1, 1, 0] + v[0, 0, 0, 1] - v[0, 0, 0, 0]) / 2
    torch.testing.assert_close(found.owen[3], half)


@pytest.mark.parametrize("gauge", GAUGES)
def test_all_sixteen_values_equal_the_slow_reference(random_game, slow_runs, gauge):
    (model, contexts), runs = random_game, slow_runs
    played = play(model, contexts)
    readings = four_paths(model, [played[0]], [played[1]], head_row(model, gauge))
    g = runs[0][0].gauge_row(Y, gauge, FOIL)
    u = runs[0][0].readout(runs[0][0].final(int(contexts[0].rows[0])), g)
    size = float(readings["values"].abs().max())
    for name, is_strict in (("pattern and values", False), ("values", True)):
        for k, norm in enumerate(NORMS):
            for side in (0, 1):
                (clean, other), one = runs[1 - side], contexts[1 - side]
                visual = one.own["input_ids"][0] == model.config.image_token_id
                sources, row = visual.nonzero()[:, 0].tolist(), int(one.rows[0])
                slow = reference.value_at(
                    clean, other, row, sources, g, is_strict, norm == "live", u
                )
                for at, value in slow.items():
                    mine = readings[name][(*at, side, k)]
                    assert float(mine) == pytest.approx(float(value.detach()), abs=1e-6 * size)


@pytest.mark.parametrize("gauge", GAUGES)
def test_the_same_words_leave_the_split_of_three_paths(random_game, gauge):
    model, contexts = random_game
    played = play(model, contexts[:1])
    g = head_row(model, gauge)
    found = algebra.shares(four_paths(model, played, played, g)["pattern and values"])
    assert (found.owen[3] == 0).all()
    inputs = contexts[0].own
    row = int(contexts[0].rows[0])
    images = interp.model.vlm.image_embeddings(model, contexts[0].partner)
    three = extract.shapley(
        model,
        inputs,
        references={"other": images},
        positions=[row],
        targets=[Y],
        gauge=gauge,
        foils=[FOIL] if gauge == "contrast" else None,
    ).squeeze()
    np.testing.assert_allclose(found.owen[:3].numpy(), three["shapley"].values, atol=1e-9)
    same = [Context(contexts[0].own, contexts[0].own, contexts[0].rows)]
    nothing = play(model, same)
    v = four_paths(model, nothing, nothing, g)["pattern and values"]
    torch.testing.assert_close(v, v[1, 1, 1, 1].expand_as(v), atol=1e-9, rtol=1e-9)


def test_exchanging_the_sides_changes_no_live_value(random_game):
    model, contexts = random_game
    played = play(model, contexts)
    exchanged = play(model, [Context(c.partner, c.own, c.rows) for c in contexts])
    g = head_row(model, "contrast")
    one = four_paths(model, [played[0]], [played[1]], g)["pattern and values"]
    two = four_paths(model, [exchanged[1]], [exchanged[0]], -g)["pattern and values"]
    torch.testing.assert_close(two[..., 0], -one.flip(0, 1, 2, 3)[..., 0], atol=1e-9, rtol=1e-9)
    first, second = algebra.shares(one[..., 0]), algebra.shares(two[..., 0])
    torch.testing.assert_close(first.owen, second.owen)
    torch.testing.assert_close(first.shapley, second.shapley)


def test_the_images_slots_are_the_same_behind_either_text(random_game):
    from interp.capture.prefill import prefills

    model, contexts = random_game
    rows = [one.rows for one in contexts]
    runs = prefills(model, [one.own for one in contexts], rows).sequences
    visual = contexts[0].own["input_ids"][0] == model.config.image_token_id
    for layer in range(model.config.text_config.num_hidden_layers):
        for kind in ("keys", "values"):
            one, two = (getattr(run, kind)[layer][:, :, : len(visual)] for run in runs)
            torch.testing.assert_close(one[:, :, visual], two[:, :, visual], atol=1e-10, rtol=1e-10)


def test_sixteen_values_are_shared_out_as_by_hand():
    """v = p1 + 2 p2 p4 + 3 p3 p4: the union of paths shares its part of what it does with words."""
    v = torch.zeros(2, 2, 2, 2, 1, dtype=torch.float64)
    for p1, p2, p3, p4 in product((0, 1), repeat=4):
        v[p1, p2, p3, p4] = p1 + 2 * p2 * p4 + 3 * p3 * p4
    found = algebra.shares(v)
    assert found.owen[:, 0].tolist() == pytest.approx([1, 1, 1.5, 2.5])
    assert found.shapley[:, 0].tolist() == pytest.approx([1, 1, 1.5, 2.5])
    assert (float(found.interaction), float(found.total)) == (5, 6)
    v[1, 1, 1, 1] += 12  # of all four: a fourth each, or half for the words
    found = algebra.shares(v)
    assert found.shapley[:, 0].tolist() == pytest.approx([4, 4, 4.5, 5.5])
    assert found.owen[:, 0].tolist() == pytest.approx([3, 3, 3.5, 8.5])


# -------------------------------------------------------------------------------- planted circuits

WORDS = 20, 22
MULTIPLIED = "multiplied"
OUT = slice(51, 63)


def _word(model):
    """A word's embedding is copied to the readout."""
    rows = model.model.language_model.embed_tokens.weight
    rows[WORDS[0], planted.D], rows[WORDS[1], planted.D] = 1.0, -1.0
    planted._copy(model.model.language_model.layers[0], planted.D, planted.C)


def _both(model):
    _word(model)
    layer = model.model.language_model.layers[0].self_attn
    layer.v_proj.weight[0:16, planted.B] = torch.randn(16, 16).double() / 4


def _multiplied(model):
    """An FFN multiplies what the word wrote, present or absent, by what the image wrote."""
    layer = model.model.language_model.layers[0]
    model.model.language_model.embed_tokens.weight[WORDS[0], planted.D] = 1.0
    layer.self_attn.v_proj.weight[0, planted.B] = 1.0
    layer.self_attn.v_proj.weight[1, planted.D] = 1.0
    layer.self_attn.o_proj.weight[planted.C.start, 0] = 1.0
    layer.self_attn.o_proj.weight[planted.C.start + 1, 1] = 1.0
    layer.mlp.gate_proj.weight[0, planted.C.start + 1] = 5.0
    layer.mlp.up_proj.weight[0, planted.C.start] = 5.0
    layer.mlp.down_proj.weight[OUT, 0] = torch.randn(12).double()


def _carried(model):
    """A thinking token's FFN carries the image's content on."""
    first, second = model.model.language_model.layers
    model.model.language_model.embed_tokens.weight[31, planted.IS_CARRIER] = 1.0
    planted._copy(first, planted.B, planted.C)
    first.mlp.gate_proj.weight[:16, planted.IS_CARRIER] = 1.0
    first.mlp.up_proj.weight[:16, planted.C] = torch.randn(16, 16).double()
    first.mlp.down_proj.weight[planted.D, :16] = torch.randn(16, 16).double()
    second.self_attn.v_proj.weight[0:16, planted.D] = torch.randn(16, 16).double() / 4
    second.self_attn.o_proj.weight[OUT, 0:16] = torch.randn(12, 16).double()


CIRCUITS = {
    "word": (_word, planted.C, (0, 0, 0, 1)),
    "image": (planted._direct, planted.C, (1, 0, 0, 0)),
    "multiplied": (_multiplied, OUT, (0, 0.5, 0, 0.5)),
    "carried": (_carried, OUT, (0, 0, 1, 0)),
}


def plant(circuit, dims, processor):
    """A planted model whose tower shows no content in the partner's image."""
    model = planted.make("direct", processor)
    language = model.model.language_model
    torch.manual_seed(7)
    with torch.no_grad():
        for name, parameter in language.layers.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)
        model.lm_head.weight.zero_()
        circuit(model)
        model.lm_head.weight.zero_()
        width = dims.stop - dims.start
        model.lm_head.weight[:, dims] = torch.randn(len(model.lm_head.weight), width).double()

    def show(_module, args, kwargs, output):
        pixels = args[0] if args else kwargs["hidden_states"]
        output.pooler_output[:, planted.B] *= float((pixels[0] != 0).any())

    model.model.visual.register_forward_hook(show, with_kwargs=True)
    return model


def planted_game(model, processor):
    inputs = batch(processor)
    blank = dict(inputs) | {"pixel_values": torch.zeros_like(inputs["pixel_values"])}
    contexts = []
    for word in WORDS:
        own = behind(inputs, [word, 31, 25])
        row = own["input_ids"].shape[1] - 1
        contexts.append(Context(own, behind(blank, [word, 31, 25]), torch.tensor([row])))
    own, partner = ([one] for one in play(model, contexts))
    return four_paths(model, own, partner, head_row(model, "contrast"))["pattern and values"]


@pytest.mark.parametrize("name", list(CIRCUITS))
def test_planted_circuits_give_their_shares(processor, name):
    circuit, dims, expected = CIRCUITS[name]
    found = algebra.shares(planted_game(plant(circuit, dims, processor), processor))
    frozen = NORMS.index("frozen")
    assert abs(float(found.total[frozen])) > 0.01
    share = found.owen[:, frozen] / found.total[frozen]
    np.testing.assert_allclose(share.numpy(), expected, atol=1e-6)
    if name in ("word", "image"):  # one path alone: the live norm has nothing to misplace
        live = found.owen[:, 0] / found.total[0]
        np.testing.assert_allclose(live.numpy(), expected, atol=1e-6)
    interaction = found.interaction[frozen] / found.total[frozen]
    assert float(interaction) == pytest.approx(1.0 if name == MULTIPLIED else 0.0, abs=1e-6)


def test_two_planted_paths_add_up(processor):
    """Under the frozen norm exactly; each single effect is the other circuit's absence."""
    model = plant(_both, planted.C, processor)
    v = planted_game(model, processor)[..., NORMS.index("frozen")]
    found = algebra.shares(v)
    single = [v[1, 1, 1, 0] - v[0, 0, 0, 0], v[0, 0, 0, 1] - v[0, 0, 0, 0]]
    assert min(abs(float(one)) for one in single) > 0.01
    expected = [float(single[0]), 0, 0, float(single[1])]
    np.testing.assert_allclose(found.owen.numpy(), expected, atol=1e-9)


# ------------------------------------------------------------------------ the call, on real samples


@pytest.fixture(scope="module")
def scenes():
    return interp.load_samples("digits", split="test", limit=40)


@pytest.fixture(scope="module")
def by_family(scenes):
    return {one.family: one for one in reversed(scenes)}


def test_the_call_on_a_scene_and_its_twin(tiny, by_family):
    for sample in by_family.values():
        ds = extract.words(tiny, sample, sample.twin)
        corners = ds["words_corner"]
        own = corners.sel(image_side="own", text_side="own")
        partner = corners.sel(image_side="partner", text_side="partner")
        live = ds["words_total"].sel(norm="live", drawn="greedy")
        np.testing.assert_allclose(live, own - partner, rtol=1e-4)
        total = ds["words_total"]
        np.testing.assert_allclose(ds["words_owen"].sum("player"), total, rtol=1e-4, atol=1e-4)
        words = ds["words_owen"].sel(player="words", norm="live", gauge="contrast").squeeze()
        is_stated = sample.family in ("count", "sum")
        assert float(words / live.sel(gauge="contrast")) > 0.9 or not is_stated
        assert bool(ds["has_same_words"]) == np.isnan(ds["parting_total"]).all()
        if not bool(ds["has_same_words"]):
            assert float(ds["parting_total"].sel(norm="live")) > 0  # both texts are greedy


def test_the_choice_of_the_first_word_is_the_split_of_three_paths(tiny, by_family):
    """As `extract.shapley` gives it at that row, for the word against the partner's."""
    sample = by_family["sum"]
    texts = tiny.answers([sample, sample.twin])
    ids = [words_of(tiny.processor.tokenizer, one).ids for one in texts]
    at = next(k for k, (w, other) in enumerate(zip(*ids, strict=False)) if w != other)
    ds = extract.words(tiny, sample, sample.twin, text=texts[0], partner_text=texts[1])
    n_prompt = prompts.prompts(tiny.processor, [sample], PROMPTS[tiny.prompt])["input_ids"].shape[1]
    alone = extract.shapley(
        tiny,
        sample,
        completion=texts[0],
        references={"partner": embed(tiny, sample.twin.image)[0]},
        sources=["image"],
        positions=[n_prompt + at - 1],
        targets=[ids[0][at]],
        gauge="contrast",
        foils=[ids[1][at]],
    ).squeeze()
    np.testing.assert_allclose(ds["parting"], alone["shapley"], atol=1e-4)
    np.testing.assert_allclose(ds["parting_total"], alone["total"], atol=1e-4)


@pytest.mark.long
def test_random_weights_have_nothing_to_say_with_the_datas_answers(tiny, scenes):
    from analyses.run.models import random_weights

    random = random_weights(tiny, 0)
    totals = []
    for sample in scenes:
        texts = [
            prompts.given_text(tiny.processor.tokenizer, one.text) for one in (sample, sample.twin)
        ]
        game = prepare(random, sample, alike(sample, sample.twin), *texts)
        ds = next(played_games([game]))
        totals.append(float(ds["words_total"].sel(norm="live", gauge="contrast").squeeze()))
    error = np.std(totals) / len(totals) ** 0.5
    assert np.mean(totals) + 3 * error < 0.5  # the gate of METHODS.md 3.6


def test_drawn_texts_are_averaged(tiny, by_family):
    """K draws of one text give its numbers; crossed pairs average to the two sides' cubes."""
    sample = by_family["count"]
    own, partner = tiny.answers([sample, sample.twin])
    game = prepare(tiny, sample, sample.twin, own, partner, drawn=([own] * 3, [partner] * 3))
    ds = next(played_games([game]))
    for name in ("words_owen", "words_shapley", "words_total"):
        both = (ds[name].sel(drawn=drawn) for drawn in ("sampled", "greedy"))
        np.testing.assert_allclose(*both, atol=1e-5, err_msg=name)
    assert ds["n_texts"].sel(drawn="sampled").values.tolist() == [3, 3]
    others = tiny.answers([by_family["sum"], by_family["left_of"]])
    sides = [own, others[0]], [partner, others[1]]
    mixed = next(played_games([prepare(tiny, sample, sample.twin, own, partner, drawn=sides)]))
    crossed = [
        next(played_games([prepare(tiny, sample, sample.twin, own, partner, drawn=([a], [b]))]))
        for a in sides[0]
        for b in sides[1]
    ]
    for norm in NORMS[:1]:  # the frozen norm is the first own text's, which pairs do not share
        mean = np.mean(
            [one["words_owen"].sel(drawn="sampled", norm=norm) for one in crossed], axis=0
        )
        np.testing.assert_allclose(
            mixed["words_owen"].sel(drawn="sampled", norm=norm), mean, atol=1e-4
        )


def test_sampling_is_seeded_and_leaves_the_callers_numbers_alone(tiny, by_family):
    sample = by_family["sum"]
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one = tiny.sampled(sample, 3, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert [t.text for t in one] == [t.text for t in tiny.sampled(sample, 3, seed=1)]
    hot = interp.load_model("tiny-cold", device="cpu")  # of two minds, so that draws differ
    drawn = [[t.text for t in hot.sampled(sample, 6, seed=seed)] for seed in (1, 2)]
    assert len(set(drawn[0])) > 1 and drawn[0] != drawn[1]
    ds = extract.words(tiny, sample, sample.twin, n_sampled=3, seed=1)
    assert ds["drawn"].values.tolist() == ["greedy", "sampled"]


def test_batches_give_what_each_game_gives_alone(tiny, scenes):
    games = []
    for sample in scenes[:6]:
        texts = tiny.answers([sample, sample.twin])
        games.append(prepare(tiny, sample, sample.twin, *texts))
    together, alone = list(played_games(games)), list(played_games(games, max_memory=1))
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one["words_value"], other["words_value"], atol=1e-4)
        np.testing.assert_allclose(one["parting"], other["parting"], atol=1e-4)


def test_what_has_no_game_is_refused_by_name(tiny, scenes, by_family):
    sample = by_family["sum"]
    texts = tiny.answers([sample, sample.twin])
    cases = [
        (sample, sample, texts, "expected two different answers"),
        (sample, by_family["count"], texts, "expected a partner with the same question"),
        (sample, sample.twin, ["3", texts[1]], "expected a text with a thinking span"),
        (sample, sample.twin, ["<think>\na\n</think>\n", texts[1]], "an answer behind"),
    ]
    for one, other, both, message in cases:
        with pytest.raises(ValueError, match=message):
            prepare(tiny, one, other, *both)
    several = interp.Sample(image=[sample.image] * 2, question=sample.question, answer="3")
    with pytest.raises(ValueError, match="expected one image, got 2"):
        extract.words(tiny, several, sample.twin)
    unknown = interp.Sample(image=sample.image, question=sample.question)
    with pytest.raises(ValueError, match="expected the data's answers of both"):
        extract.words(tiny, unknown, sample.twin)


def test_a_partner_of_another_size_is_resized(tiny, scenes):
    sample = scenes[0]
    wide = sample.image.resize((sample.image.width + 56, sample.image.height))
    other = interp.Sample(
        image=wide, question=sample.question, answer=sample.twin.answer, id="wide"
    )
    ds = extract.words(tiny, sample, other)
    assert ds.attrs["partner"] == "wide"
    assert np.isfinite(ds["words_total"]).all()
