"""Qwen3-VL: an image that enters several layers is one content, in every call (METHODS.md 1.1)."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor

import interp
from interp.attribution.relevance import attn_lrp
from interp.capture import prefill
from interp.extract import replaced
from interp.extract.question import ask
from interp.extract.references import blurred
from interp.model import families
from interp.validate import NotCertified, certify
from tests.support import odd_models, reference
from tests.support.odd_models import batch, make, random_references

SHAPE = "three_to_one"


@pytest.fixture
def model(processor):
    return make(SHAPE, processor)


@pytest.fixture
def inputs(processor):
    return batch(processor)


def visual_rows(model, inputs) -> list[int]:
    return (inputs["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0].tolist()


def last(inputs) -> dict:
    return {"positions": [inputs["input_ids"].shape[1] - 3], "targets": [5]}


def test_heads_are_wider_than_the_stream_and_levels_are_counted(model):
    parts = families.parts(model)
    assert parts.d_head * parts.n_heads > model.config.text_config.hidden_size
    assert parts.n_injected == len(model.model.visual.deepstack_merger_list) == 2


def test_without_its_levels_it_is_a_model_that_never_had_any(processor, model, inputs):
    with_levels = interp.extract.ledger(model, inputs, **last(inputs))
    with torch.no_grad():
        for merger in model.model.visual.deepstack_merger_list:
            merger.linear_fc2.weight.zero_()
            merger.linear_fc2.bias.zero_()
    zeroed = interp.extract.ledger(model, inputs, **last(inputs))
    assert float(np.abs(zeroed.direct - with_levels.direct).max()) > 1e-3

    never = make(SHAPE, processor)
    never.load_state_dict(model.state_dict())
    never.config.vision_config.deepstack_visual_indexes = []
    never.model.visual.deepstack_visual_indexes = []
    assert families.parts(never).n_injected == 0
    references = random_references(inputs, model)
    width = model.config.text_config.hidden_size
    embeddings = {name: one[:, :width] for name, one in references.items()}
    padded = {
        name: torch.cat([one, torch.zeros(len(one), 2 * width)], dim=1).to(one)
        for name, one in embeddings.items()
    }
    for call, own, other in (
        ("ledger", {}, {}),
        ("effects", {}, {}),
        ("node_effects", {"references": padded}, {"references": embeddings}),
        ("shapley", {"references": padded}, {"references": embeddings}),
    ):
        ours = getattr(interp.extract, call)(model, inputs, **last(inputs), **own)
        theirs = getattr(interp.extract, call)(never, inputs, **last(inputs), **other)
        for name in ours.data_vars:
            np.testing.assert_allclose(ours[name], theirs[name], atol=1e-9, err_msg=name)


def test_replaced_content_is_the_other_pictures_pixels(processor, model):
    """Embeddings alone would leave the picture in; nothing that is computed is that."""
    vlm, sample = odd_models.vlm(model, processor), odd_models.sample()
    refs = interp.extract.references(vlm, sample, kinds=("blur",))
    nodes = interp.extract.node_effects(vlm, sample, references=refs, sources=["image"])
    query = ask(vlm, sample)
    row, target = int(query.rows[-1]), int(query.targets[-1])
    other = processor.image_processor(images=[blurred(sample.image)], return_tensors="pt")
    other = other["pixel_values"]
    logits = []
    for pixels in (query.batch["pixel_values"], other.to(query.batch["pixel_values"])):
        with torch.no_grad():
            found = model(**query.batch | {"pixel_values": pixels}).logits[0, row]
        logits.append(float(found[target] - found.mean()))
    total = float(nodes.total[-1, 0, 0])
    assert total == pytest.approx(logits[0] - logits[1], abs=1e-6)

    visual, width = visual_rows(model, query.batch), model.config.text_config.hidden_size
    kept = dict(zip(visual, refs["blur"].content[:, :width], strict=True))
    clean = reference.Clean(model, query.batch)
    halfway, _ = reference.node_effect(
        clean, reference.Clean(model, query.batch, kept), row, target, visual
    )
    assert abs(float(halfway) - total) > 0.05 * abs(total)
    shares = interp.extract.shapley(vlm, sample, references=refs, sources=["image"])
    assert float(shares.total.sel(norm="live")[-1, 0, 0]) == pytest.approx(total, abs=1e-6)
    pixels = interp.extract.pixel_effects(vlm, sample, reference="blur", sources=["image"])
    for name in ("pixels", "vector"):
        found = pixels.set_total.sel(intervention=name)[-1, 0]
        assert float(found) == pytest.approx(total, abs=1e-6)


def test_embeddings_alone_are_refused_as_a_reference(model, inputs):
    width = model.config.text_config.hidden_size
    alone = {name: one[:, :width] for name, one in random_references(inputs, model).items()}
    for call in ("node_effects", "shapley"):
        with pytest.raises(ValueError, match=f"expected {3 * width} numbers for each visual token"):
            getattr(interp.extract, call)(model, inputs, references=alone, **last(inputs))


def test_a_visual_row_as_a_target_has_its_levels_in_its_embedding(model, inputs):
    rows = visual_rows(model, inputs)[3:6]
    ds = interp.extract.ledger(model, inputs, positions=rows, targets=[5, 6, 7])
    np.testing.assert_allclose(ds.remainder, 0, atol=1e-6 * float(ds.magnitude.max()))
    clean = reference.Clean(model, inputs)
    for k, (row, target) in enumerate(zip(rows, [5, 6, 7], strict=True)):
        _, _, _, embed, _ = reference.ledger(clean, row, target)
        assert float(ds.embed[k]) == pytest.approx(float(embed), abs=1e-6)
        u = clean.readout(clean.final(row), clean.gauge_row(target, "centered"))
        added = float((u @ clean.added(0, row)).detach())
        assert abs(added) > 1e-4  # so that leaving it out would be seen


def test_a_prefill_in_two_pieces_is_one(model, inputs):
    """The model's own chunks: the image in the first, the last rows read through the cache."""
    n_tokens = inputs["input_ids"].shape[1]
    cut = n_tokens - 4
    first = {
        name: value[:, :cut] if value.shape[:2] == (1, n_tokens) else value
        for name, value in inputs.items()
    }
    with torch.no_grad():
        cache = model(**first, use_cache=True).past_key_values
        positions, _ = model.model.get_rope_index(
            inputs["input_ids"],
            image_grid_thw=inputs["image_grid_thw"],
            attention_mask=inputs["attention_mask"],
            mm_token_type_ids=inputs["mm_token_type_ids"],
        )
        rest = model(
            input_ids=inputs["input_ids"][:, cut:],
            position_ids=positions[..., cut:],
            attention_mask=inputs["attention_mask"],
            past_key_values=cache,
        ).logits[0]
    rows = list(range(cut, n_tokens - 1))
    ds = interp.extract.ledger(model, inputs, positions=rows, gauge="raw")
    expected = rest[range(len(rows)), inputs["input_ids"][0, cut + 1 :]]
    np.testing.assert_allclose(ds.logit, expected, atol=1e-6)


def test_positions_of_four_axes_are_read_and_video_is_refused(model, inputs):
    """The first of four axes counts text alone, for packed sequences."""
    positions, _ = model.model.get_rope_index(
        inputs["input_ids"],
        image_grid_thw=inputs["image_grid_thw"],
        attention_mask=inputs["attention_mask"],
        mm_token_type_ids=inputs["mm_token_type_ids"],
    )
    n_tokens = inputs["input_ids"].shape[1]
    packed = torch.cat([torch.arange(n_tokens).expand(1, 1, -1), positions])
    expected = interp.extract.ledger(model, inputs, **last(inputs))
    for given in (positions, packed):
        found = interp.extract.ledger(model, {**inputs, "position_ids": given}, **last(inputs))
        np.testing.assert_allclose(found.direct, expected.direct, atol=1e-12)
    video = {**inputs, "pixel_values_videos": inputs["pixel_values"]}
    with pytest.raises(ValueError, match="expected images, got a video; extract its frames"):
        interp.extract.ledger(model, video, **last(inputs))


def test_biases_of_the_output_projection_are_counted(processor):
    model = make(SHAPE, processor)
    config = model.config
    config.text_config.attention_bias = True
    torch.manual_seed(1)
    biased = type(model)(config).double().eval()
    with torch.no_grad():
        for name, parameter in biased.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
    assert biased.model.language_model.layers[0].self_attn.o_proj.bias.abs().min() > 0
    vlm = odd_models.vlm(biased, processor)
    assert certify(vlm, [odd_models.sample()], witness=False).is_passed


def test_it_certifies_with_a_witness(processor, model):
    found = certify(odd_models.vlm(model, processor), [odd_models.sample()], witness=True)
    assert found.is_passed and "TransformerLens: resid_post" in found.checks.check


def test_a_reference_that_keeps_the_levels_is_found_by_name(processor, model, monkeypatch):
    """Paths and shares still sum; the other picture's pixels tell."""
    right = prefill.prefills_with

    def keeping(model, clean, replacements):
        width = model.config.text_config.hidden_size
        kept = [
            (
                rows,
                torch.cat([content[:, :width].to(clean.content), clean.content[rows, width:]], 1),
            )
            for rows, content in replacements
        ]
        return right(model, clean, kept)

    monkeypatch.setattr(prefill, "prefills_with", keeping)
    monkeypatch.setattr(replaced, "prefills_with", keeping)
    with pytest.raises(NotCertified) as error:
        certify(odd_models.vlm(model, processor), [odd_models.sample()], witness=False)
    (failure,) = error.value.certificate.failures
    assert failure.startswith("replaced content equals a forward with it:")


def test_a_mixture_of_experts_is_exact(processor, inputs):
    """Its FFN is one more part, whichever experts a token has."""
    sizes = replace(odd_models.sizes_of(SHAPE, processor), family="qwen3_vl_moe")
    model = odd_models.make_of(sizes, processor)
    model.set_experts_implementation("eager")  # the other one has no float64
    row, target = last(inputs)["positions"][0], 5
    ds = interp.extract.ledger(model, inputs, **last(inputs))
    clean = reference.Clean(model, inputs)
    direct, _, ffn, _, logit = reference.ledger(clean, row, target)
    np.testing.assert_allclose(ds.direct[0], direct, atol=1e-6)
    np.testing.assert_allclose(ds.ffn[0], ffn, atol=1e-6)
    assert float(ds.logit[0]) == pytest.approx(float(logit), abs=1e-6)
    refs, visual = random_references(inputs, model), visual_rows(model, inputs)
    nodes = interp.extract.node_effects(model, inputs, references=refs, **last(inputs))
    other = reference.Clean(model, inputs, dict(zip(visual, refs["one"], strict=True)))
    total, parts = reference.node_effect(clean, other, row, target, visual)
    assert float(nodes.total[0, 0, 0]) == pytest.approx(float(total), abs=1e-6)
    ffn_path = float(nodes.effect.sel(path="ffn")[0, 0, 0])
    assert ffn_path == pytest.approx(float(parts["ffn"]), abs=1e-6)
    vlm, sample = odd_models.vlm(model, processor), odd_models.sample()
    certificate = certify(vlm, [sample], witness=False)
    assert certificate.is_passed
    assert "first-order map sums to the joint cut" not in certificate.checks["check"].values
    assert "no gradient sees a change of experts" in certificate.checks.attrs["left_out"]
    with pytest.raises(ValueError, match="for AttnLRP, got Qwen3VLMoeTextSparseMoeBlock; there is"):
        attn_lrp(vlm, sample, -1)


def test_a_folder_with_its_own_processor_loads_and_is_outlined(processor, tmp_path):
    """Cells of 32 pixels, and as narrow or short as is asked, with all its levels."""
    tokenizer, pixels = processor.tokenizer, {"min_pixels": 64 * 64, "max_pixels": 32 * 32 * 64}
    images = Qwen2VLImageProcessor(
        patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3, **pixels
    )
    own = Qwen3VLProcessor(images, tokenizer, processor.video_processor, processor.chat_template)
    sizes = replace(odd_models.sizes_of(SHAPE, processor), patch_size=16)
    model = odd_models.make_of(sizes, processor, torch.float32)
    model.save_pretrained(tmp_path)
    own.save_pretrained(tmp_path)
    vlm, sample = interp.load_model(tmp_path, prompt="plain"), odd_models.sample()
    assert type(vlm.processor) is Qwen3VLProcessor
    width, height = sample.image.size
    maps = interp.extract.maps(vlm, sample, kinds=("direct", "effect"))
    grid = maps.vlm.map("answer", "effect").shape
    assert abs(grid[0] * 32 - height) < 32 and abs(grid[1] * 32 - width) < 32
    assert vlm.answer(sample.image, sample.question, max_new_tokens=3).token_ids
    narrow = interp.loading.outline(tmp_path, is_narrow=True)
    assert families.parts(narrow.model).n_injected == 2
    assert interp.extract.ledger(narrow, sample).sizes["layer"] == 3
    short = interp.loading.outline(tmp_path, depth=(1, 1))
    assert interp.extract.ledger(short, sample).sizes["layer"] == 1
