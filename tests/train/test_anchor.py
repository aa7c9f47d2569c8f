"""The <Focus> token: vocabulary, template, roles, and the loss on its attention."""

import copy
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from tokenizers import AddedToken
from trl import SFTConfig

import interp
from interp.capture.heard import hearing
from interp.data.boxes import box_overlap
from interp.inputs import prompts as inputs
from interp.loading import load_model
from interp.model import families
from tests.support import ROOT, odd_models
from train import focus, sft
from train.focus import FOCUS, add_focus, focus_id
from train.losses.anchor import anchor_losses


@pytest.fixture(scope="module")
def samples():
    return interp.load_samples("digits", limit=3)


@pytest.fixture(scope="module")
def focused(tmp_path_factory):
    """The command on the cold start: a folder."""
    out = tmp_path_factory.mktemp("focus") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["focus", "tiny-cold", "--out", str(out)])
        focus.main()
    return out


def test_it_stands_in_front_of_all_that_is_written(focused, samples):
    """In the generation prompt and before assistants' texts; nothing else of a prompt changes."""
    plain, vlm = load_model("tiny-cold", device="cpu"), load_model(str(focused), device="cpu")
    token = focus_id(vlm.processor, FOCUS)
    before = inputs.prompts(plain.processor, samples[:1], None)["input_ids"][0].tolist()
    after = inputs.prompts(vlm.processor, samples[:1], None)["input_ids"][0].tolist()
    assert after == [*before, token]
    talk = replace(samples[0], earlier=(("which digits are there?", "a red 3"),))
    text = inputs.prompt_text(vlm.processor, talk, "be brief")
    assert text.count(FOCUS) == 2 and f"assistant\n{FOCUS}a red 3<|im_end|>" in text
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "x"}]
    whole = vlm.processor.apply_chat_template(turns, tokenize=False)
    assert whole.endswith(f"assistant\n{FOCUS}x<|im_end|>\n")
    made = inputs.teacher_forced(vlm.processor, samples[0], None)
    usual = inputs.teacher_forced(plain.processor, samples[0], None)
    roles = [role for k, role in zip(made.tokens.ids, made.tokens.role, strict=True) if k != token]
    assert roles == list(usual.tokens.role)
    assert made.tokens.role[len(after) - 1] == "template"


def test_its_row_is_the_mean_and_all_others_are_as_they_were(focused):
    before = load_model("tiny-cold", device="cpu").model.get_input_embeddings().weight
    vlm = load_model(str(focused), device="cpu")
    after = vlm.model.get_input_embeddings().weight
    token = focus_id(vlm.processor, FOCUS)
    rest = torch.arange(len(before)) != token
    assert torch.equal(before[rest], after[rest])
    torch.testing.assert_close(after[token], before[:token].mean(0))
    assert vlm.answer(*_asked()).is_complete


def _asked():
    sample = interp.load_samples("digits", limit=1)[0]
    return sample.image, sample.question


def test_a_token_that_nobody_uses_needs_no_row(samples):
    vlm = load_model("tiny-cold", device="cpu")
    weight = vlm.model.get_input_embeddings().weight.clone()
    token = add_focus(vlm, "<|box_start|>")
    assert torch.equal(weight, vlm.model.get_input_embeddings().weight)
    prompt = inputs.prompts(vlm.processor, samples[:1], None)["input_ids"][0]
    assert int(prompt[-1]) == token
    with pytest.raises(ValueError, match="expected a template without"):
        add_focus(vlm, "<|box_start|>")
    with pytest.raises(ValueError, match="expected a special token, got 'e'"):
        add_focus(load_model("tiny-cold", device="cpu"), "e")
    with pytest.raises(ValueError, match="expected a model whose chat template has"):
        focus_id(vlm.processor, FOCUS)
    full = load_model("tiny-cold", device="cpu")
    full.processor.tokenizer.add_tokens([f"<|spare {k}|>" for k in range(12)])
    with pytest.raises(
        ValueError, match="expected a spare row for '<Focus>', got 400 rows for 400"
    ):
        add_focus(full)


@pytest.mark.parametrize("shape", ["five_to_one", "three_to_three", "three_to_one", "four_to_two"])
def test_other_families_templates_take_it_too(shape, processor, samples):
    mine = copy.deepcopy(processor)
    mine.tokenizer.add_tokens([AddedToken("<spare>", special=True)], special_tokens=True)
    vlm = odd_models.vlm(odd_models.make(shape, processor, torch.float32), mine)
    add_focus(vlm, "<spare>")
    before = inputs.prompt_text(processor, samples[0], None)
    assert inputs.prompt_text(mine, samples[0], None) == before + "<spare>"
    talk = replace(samples[0], earlier=(("which digits?", "a red 3"),))
    assert "<spare>a red 3" in inputs.prompt_text(mine, talk, None).replace("<spare> ", "<spare>")


def test_the_loss_is_that_of_eager_attention(focused, samples):
    """Renormalised over the image, layers and heads averaged, on each text of a padded batch."""
    vlm = load_model(str(focused), device="cpu", attn_implementation="eager")
    token, layers = focus_id(vlm.processor, FOCUS), [1, 4]
    batch = inputs.prompts(vlm.processor, samples, None)
    merge = vlm.processor.image_processor.merge_size
    grids = (batch["image_grid_thw"][:, 1:] // merge).tolist()
    overlap = [
        torch.from_numpy(box_overlap(one.boxes, *grid)).float().ravel()
        for one, grid in zip(samples, grids, strict=True)
    ]
    with torch.no_grad():
        with hearing(vlm.model, layers) as heard:
            vlm.model(**batch)
        found = anchor_losses(heard, layers, token, batch, overlap)
    for value, sample, weights in zip(found, samples, overlap, strict=True):
        own = inputs.prompts(vlm.processor, [sample], None)
        with torch.no_grad():
            out = vlm.model(**own, output_attentions=True)
        row = torch.stack([out.attentions[n][0, :, -1].mean(0) for n in layers]).mean(0)
        on = row[own["input_ids"][0] == vlm.processor.image_token_id]
        assert float(value) == pytest.approx(-float(np.log(on @ weights / on.sum())), abs=1e-5)
    without = {name: value.clone() for name, value in batch.items()}
    without["input_ids"][0, -1] = 5
    with pytest.raises(ValueError, match="expected the anchor's token in every text"):
        anchor_losses(heard, layers, token, without, overlap)


def anchored(focused, out, **changed):
    content = yaml.safe_load((ROOT / "train/configs/tiny-focus.yaml").read_text())
    content |= {"model_name_or_path": str(focused), "output_dir": str(out), "n_samples": 48}
    content |= {"per_device_train_batch_size": 8, "logging_steps": 1, "save_strategy": "no"}
    content |= {"disable_tqdm": True, "warmup_steps": 0, "dataloader_num_workers": 0} | changed
    content["certify"] = False  # that none begins without one is a test of its own
    own = [
        one(**{name: content.pop(name) for name in set(one.__dataclass_fields__) & set(content)})
        for one in (sft.Policy, sft.Data)
    ]
    sft.main(*own, SFTConfig(**content))


def on_boxes(folder, samples) -> float:
    """The share of the anchor's attention on the boxes, of a model in a folder."""
    vlm = load_model(str(folder), device="cpu")
    token, shares = focus_id(vlm.processor, FOCUS), []
    layer = 2 * families.parts(vlm.model).n_layers // 3
    for sample in samples:
        made = inputs.teacher_forced(vlm.processor, sample, None)
        overlap = torch.from_numpy(made.tokens.box_overlap[made.tokens.is_visual]).float()
        with torch.no_grad():
            with hearing(vlm.model, [layer]) as heard:
                vlm.model(**made.batch)
            loss = anchor_losses(heard, [layer], token, made.batch, [overlap])
        shares.append(float(torch.exp(-loss)))
    return float(np.mean(shares))


def test_training_puts_the_anchor_on_the_boxes_of_scenes_it_has_not_seen(focused, tmp_path):
    held_out = interp.load_samples("digits", split="test", limit=12, seed=7)
    anchored(focused, tmp_path / "anchored")
    before, after = (on_boxes(one, held_out) for one in (focused, tmp_path / "anchored/final"))
    assert after > before + 0.02
    vlm = load_model(str(tmp_path / "anchored/final"), device="cpu")
    assert vlm.adapter and focus_id(vlm.processor, FOCUS)
    sample = held_out[0]
    assert vlm.answer(sample.image, sample.question).is_complete


def test_a_model_without_the_token_is_refused(tmp_path):
    with pytest.raises(ValueError, match="python -m train.focus MODEL --out FOLDER"):
        anchored("tiny-cold", tmp_path)
    with pytest.raises(ValueError, match="expected layers in 0..5, got .9."):
        vlm = load_model("tiny-cold", device="cpu")
        folder = tmp_path / "focused"
        add_focus(vlm)
        vlm.model.save_pretrained(folder)
        vlm.processor.save_pretrained(folder)
        anchored(folder, tmp_path / "out", focus_layers=[9])
