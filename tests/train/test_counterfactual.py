"""Faithful-MR1's reward, our reading: by hand out of plain forwards, and what is painted."""

import numpy as np
import pytest
import torch

import interp
from interp.data.sample import Sample
from interp.inputs import prompts as inputs
from interp.inputs.completions import completion
from interp.loading import load_model
from tests.train import test_grpo
from train import grpo
from train.rewards import Reward, Term, sources
from train.rewards.accuracy import Accuracy
from train.rewards.counterfactual import Counterfactual, counterfactual, weights
from train.rewards.reading import Reading


@pytest.fixture(scope="module")
def samples():
    return interp.load_samples("digits", limit=3)


@pytest.fixture(scope="module")
def vlm():
    return load_model("tiny", device="cpu", attn_implementation="eager")


def text_of(vlm, sample):
    tokenizer = vlm.processor.tokenizer
    ids = tokenizer(sample.text, add_special_tokens=False).input_ids
    return completion(tokenizer, [*ids, tokenizer.eos_token_id])


def by_hand(vlm, sample, text):
    """log π(y_t), attention on the boxes and roles, from one plain forward."""
    made = inputs.teacher_forced(vlm.processor, sample, None, text)
    with torch.no_grad():
        out = vlm.model(**made.batch, output_attentions=True)
    n = len(text.token_ids)
    ids = made.batch["input_ids"][0]
    rows = torch.arange(len(ids) - n - 1, len(ids) - 1)
    logs = out.logits[0, rows].log_softmax(-1)[torch.arange(n), ids[rows + 1]].numpy()
    attention = torch.stack(out.attentions)[:, 0].mean((0, 1))[rows].numpy()
    return logs, attention @ made.tokens.box_overlap, [made.tokens.role[r + 1] for r in rows]


@pytest.mark.parametrize("kind", ["in-box", "out-of-box", "blank", "noise"])
def test_the_reward_is_that_of_two_plain_forwards(vlm, samples, kind):
    texts = [text_of(vlm, one) for one in samples]
    reward = Reward(lambda *_: 1.0, [Term(Counterfactual(kind))], prompt="plain")
    reward.listen(vlm)
    logged = {}
    found = reward(
        completion_ids=[list(one.token_ids) for one in texts],
        sample=samples,
        log_metric=logged.__setitem__,
    )
    for value, sample, text in zip(found, samples, texts, strict=True):
        own, attention, role = by_hand(vlm, sample, text)
        other, _, _ = by_hand(vlm, counterfactual(vlm.processor, sample, kind), text)
        d = np.clip(own - other, -20, 20).astype(float)
        kappa = np.clip(np.exp(-d) + d - 1, 0, 10)
        kappa[[k for k, one in enumerate(role) if one not in ("thinking", "answer")]] = 0
        assert kappa.sum() > 0
        assert value == pytest.approx(float(kappa @ attention / kappa.sum()), abs=2e-5)
    assert ("faithful/out_of_box" in logged) == (kind == "in-box")
    assert 0 <= logged["faithful/at_cap"] <= 1


def test_what_is_painted(vlm, samples):
    """Inside the boxes, or outside, and nothing else; the same place for every text."""
    sample = samples[0]
    before = np.asarray(sample.image).astype(int)
    height, width = before.shape[:2]
    x0, y0, x1, y1 = (sample.boxes[0] * [width, height, width, height]).round().astype(int)
    inside = np.zeros((height, width), dtype=bool)
    inside[y0:y1, x0:x1] = True
    mean = (255 * np.array(vlm.processor.image_processor.image_mean)).round()
    one = Sample(id="x", image=sample.image, question="?", answer="7", boxes=sample.boxes[:1])
    in_box = np.asarray(counterfactual(vlm.processor, one, "in-box").image)
    out_of_box = np.asarray(counterfactual(vlm.processor, one, "out-of-box").image)
    assert (in_box[inside] == mean).all() and (in_box[~inside] == before[~inside]).all()
    assert (out_of_box[~inside] == mean).all() and (out_of_box[inside] == before[inside]).all()
    empty = np.asarray(counterfactual(vlm.processor, one, "blank").image)
    assert (empty == mean).all() and empty.shape == before.shape
    noise = [np.asarray(counterfactual(vlm.processor, one, "noise").image) for _ in range(2)]
    assert (noise[0] == noise[1]).all() and noise[0].std() > 50


def test_wrong_answers_invalid_formats_and_samples_without_boxes(vlm, samples):
    bare = Sample(id="bare", image=samples[2].image, question="?", answer="7", thinking="x")
    texts = [text_of(vlm, one) for one in (*samples[:2], bare)]
    given = {
        "completion_ids": [list(one.token_ids) for one in texts] + [[5, 6]],
        "sample": [*samples[:2], bare, samples[0]],
    }

    def judge(question, *_):
        return float(question != samples[1].question)

    def paid(kind, weight=1.0):
        terms = [Term(Accuracy()), Term(Counterfactual(kind), weight)]
        reward = Reward(judge, terms, prompt="plain")
        reward.listen(vlm)
        return reward(**given)

    found = paid("in-box")
    assert found[0] > 1.0 and found[1] == 0.0 and found[2] is None and found[3] == 1.0
    assert paid("in-box", 0.0)[2] == 1.0  # measured alone
    assert paid("blank")[2] > 1.0  # attention on the whole image
    with pytest.raises(ValueError, match="expected a kind of"):
        Counterfactual("upside down")


def test_no_weight_without_a_difference_and_none_for_tags():
    one = Reading(np.log([0.5, 0.5, 0.5]), np.ones(3), ("thinking", "text", "answer"))
    other = Reading(np.log([0.5, 0.1, 0.25]), np.ones(3), one.role)
    found = weights(one, other)
    d = np.log(2)
    np.testing.assert_allclose(found, [0, 0, np.exp(-d) + d - 1])
    assert weights(one, one).sum() == 0
    far = Reading(np.array([0.0, 0, 0]), np.ones(3), one.role)
    np.testing.assert_allclose(
        weights(far, Reading(np.full(3, -9.0), np.ones(3), one.role))[0], 8.0 + np.exp(-9)
    )
    assert weights(Reading(np.full(3, -9.0), np.ones(3), one.role), far)[0] == 10.0  # d < 0 too


@pytest.mark.long
def test_a_training_reads_it_out_of_the_generation(tmp_path, monkeypatch):
    """The same numbers as from a prefill of each, in real steps."""
    seen = []
    right = sources.readings

    def spy(vlm, texts, forward):
        found = right(vlm, texts, forward)
        plain = right(vlm, texts, sources._prefilled)
        for a, b in zip(found, plain, strict=True):
            np.testing.assert_allclose(a.log_likelihood, b.log_likelihood, atol=2e-4)
            np.testing.assert_allclose(a.on_evidence, b.on_evidence, atol=1e-5)
        seen.append(forward is not sources._prefilled)
        return found

    monkeypatch.setattr(sources, "readings", spy)
    cold = {"model_name_or_path": "tiny-cold", "num_generations": 4, "map": "none"}
    test_grpo.run(tmp_path, counterfactual="in-box", max_steps=2, **cold)
    assert any(seen)
    names = [term.part.name for term in grpo.terms(grpo.Task(1, counterfactual="out-of-box"))]
    assert names[-1] == "faithful_out"


def test_a_source_that_reads_wrong_is_found_and_not_asked_again(vlm, samples, caplog):
    """Once a run its first reading is held against a prefill's, maps or none."""
    texts = [(one, text_of(vlm, one)) for one in samples]
    found = sources.Sources(vlm, ["generation"])

    def wrong(_name, queries, _numbers):
        batch = sources._prefilled(queries, [])
        for layer in batch.keys:
            layer.neg_()
        return batch

    found._heard = wrong
    right = sources.readings(vlm, texts, sources._prefilled)
    for _ in range(2):
        for a, b in zip(found.readings(texts, [0, 1, 2]), right, strict=True):
            np.testing.assert_allclose(a.on_evidence, b.on_evidence, atol=1e-6)
    assert found.names == []
    assert sum("readings from generation differ" in r.message for r in caplog.records) == 1
    found.close()
