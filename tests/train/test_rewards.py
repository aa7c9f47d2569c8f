"""The reward: what it pays and does not, what it logs, and that it leaves the policy alone."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

import interp
from interp.data.sample import Sample
from interp.inputs import completions
from interp.inputs import prompts as inputs
from interp.loading import load_model
from interp.model.vlm import VLM
from interp.scoring import RULES, scores
from train.rewards import Reward, saliency_r1


@pytest.fixture(scope="module")
def samples():
    return interp.load_samples("digits", limit=6)


@pytest.fixture(scope="module")
def vlm():
    """A policy in training: an adapter that is not its identity, training mode, on tiny."""
    base = load_model("tiny", device="cpu")
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_dropout=0.3, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(base.model, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return VLM(model.train(), base.processor, "tiny", "plain", base.fingerprint)


def exact(_question, reference, candidate):
    return float(reference == candidate)


def reward_of(vlm, judge=exact, **options) -> Reward:
    made = saliency_r1(judge, prompt="plain", **options)
    made.listen(vlm)  # as `on_train_begin` does, which the tests of training run
    return made


def ids(vlm, text: str, end: bool = True) -> list[int]:
    tokenizer = vlm.processor.tokenizer
    return tokenizer(text, add_special_tokens=False).input_ids + [tokenizer.eos_token_id] * end


def written(vlm, text: str, end: bool = True) -> completions.Completion:
    return completions.completion(vlm.processor.tokenizer, ids(vlm, text, end))


THINK = "<think>\nthe blue digit is top left.\n</think>\n"


@pytest.mark.parametrize(
    ("text", "end", "valid"),
    [
        (THINK + "7", True, True),
        ("\n" + THINK + "7", True, True),
        (THINK + "7", False, False),  # cut off
        (THINK, True, False),  # no answer
        (THINK + " \n", True, False),
        ("7", True, False),  # no thinking
        ("<think>\n\n</think>\n7", True, False),  # nothing in it
        ("<think></think>7", True, False),
        ("well " + THINK + "7", True, False),  # something before it
        (THINK + THINK + "7", True, False),
        (THINK + "7</think>", True, False),
        ("<think>\na <think> b\n</think>\n7", True, False),
        ("<think>\nnever closed 7", True, False),
        (THINK + "7<|im_start|>user\nwell done", True, False),  # another turn
        ("</think>7<think>", True, False),
        ("", True, False),
    ],
)
def test_the_format_is_one_thinking_an_answer_and_the_end(vlm, text, end, valid):
    assert completions.is_well_formed(vlm.processor.tokenizer, written(vlm, text, end)) is valid


def test_it_pays_accuracy_format_and_the_alignment_that_analyses_measure(vlm, samples):
    right, wrong = samples[0].text, samples[1].text.replace(samples[1].answer, "zebra")
    texts = [right, wrong, "<think>\ncut off in the", "42"]
    given = [ids(vlm, right), ids(vlm, wrong), ids(vlm, texts[2], end=False), ids(vlm, "42")]
    logged, extra = {}, {}
    found = reward_of(vlm)(
        completion_ids=given,
        sample=samples[:4],
        trainer_state=None,
        log_metric=logged.__setitem__,
        log_extra=extra.__setitem__,
    )
    one_by_one = []
    for sample, text in zip(samples[:2], texts, strict=False):
        maps = interp.extract.maps(
            vlm, sample, kinds=("bottleneck",), only="answer", completion=written(vlm, text)
        )
        saliency = interp.maps.holistic(maps)
        one_by_one.append(float(interp.alignment.alignment(saliency, sample.boxes).alignment))
    assert found[0] == pytest.approx(2 + one_by_one[0], abs=1e-5)
    assert found[1] == pytest.approx(1 + one_by_one[1], abs=1e-5)
    assert found[2:] == [0.0, 0.0]
    assert logged["accuracy"] == 0.25
    assert logged["format"] == 0.5
    assert logged["saliency/alignment"] == pytest.approx(np.mean(one_by_one), abs=1e-5)
    assert logged["saliency"] == pytest.approx(np.mean(one_by_one) / 2, abs=1e-5)
    assert logged["text/cut_off"] == 0.25
    assert logged["text/empty_thinking"] == 0.5
    assert 0 < logged["saliency/visual_attention"] < 1
    assert {"saliency/chance", "saliency/shuffled", "saliency/border"} <= set(logged)
    assert all(math.isfinite(value) for value in logged.values())
    assert extra["accuracy"] == [1, 0, 0, 0]


def test_gate_weight_and_rule_change_what_is_paid(vlm, samples):
    wrong = samples[1].text.replace(samples[1].answer, "zebra")
    both = {"completion_ids": [ids(vlm, samples[0].text), ids(vlm, wrong)], "sample": samples[:2]}
    full = reward_of(vlm)(**both)
    assert reward_of(vlm, is_gated=True)(**both) == [full[0], 1.0]
    assert reward_of(vlm, weight=0.0)(**both) == [2.0, 1.0]
    assert reward_of(vlm, rule=None)(**both) == [2.0, 1.0]
    half = reward_of(vlm, weight=0.5)(**both)
    assert half[0] - 2 == pytest.approx((full[0] - 2) / 2)
    others = {rule: reward_of(vlm, rule=rule)(**both) for rule in RULES}
    assert len({round(pair[0], 6) for pair in others.values()}) == len(RULES)
    with pytest.raises(ValueError, match="finite weight"):
        saliency_r1(exact, weight=float("nan"))
    with pytest.raises(RuntimeError, match="among the trainer's callbacks"):
        saliency_r1(exact)(**both)


def test_what_cannot_be_judged_or_read_is_left_out_whole_and_counted(vlm, samples):
    """Never a 0 in place of an unknown, and no harm to the others."""
    no_boxes = Sample(id="bare", image=samples[0].image, question="?", answer="7", thinking="x")
    image, end = vlm.processor.image_token_id, vlm.processor.tokenizer.eos_token_id
    with_image = [*ids(vlm, THINK, end=False), image, end]
    given = {
        "completion_ids": [
            with_image,
            ids(vlm, samples[0].text),
            ids(vlm, samples[1].text),
            ids(vlm, no_boxes.text),
            ids(vlm, samples[2].text),
        ],
        "sample": [samples[0], samples[0], samples[1], no_boxes, samples[2]],
    }

    def judge(question, reference, candidate):
        verdicts = {samples[0].question: float("nan"), samples[1].question: None}
        return verdicts.get(question, 1.0)

    logged = {}
    reward = reward_of(vlm, judge)
    found = reward(**given, log_metric=logged.__setitem__)
    assert found[:4] == [None, None, None, None]
    assert found[4] > 2
    assert reward.skipped == {"image token in the text": 1, "no verdict": 2, "no saliency": 1}
    assert logged["skipped/no verdict"] == pytest.approx(0.4)
    assert logged["accuracy"] == 1.0  # of those that have a reward
    reward(**given)
    assert reward.skipped["no verdict"] == 4


def test_a_sick_policy_gives_no_reward_rather_than_a_number(vlm, samples):
    weight = vlm.model.get_base_model().model.language_model.layers[1].mlp.down_proj.weight
    before = weight.detach().clone()
    given = {"completion_ids": [ids(vlm, s.text) for s in samples[:2]], "sample": samples[:2]}
    try:
        with torch.no_grad():
            weight[0, 0] = float("nan")
        assert reward_of(vlm)(**given) == [None, None]
    finally:
        with torch.no_grad():
            weight.copy_(before)
    assert all(one > 2 for one in reward_of(vlm)(**given))


@pytest.mark.parametrize("rule", ["direct", "effect"])
def test_the_policy_is_left_as_it_was(vlm, samples, rule):
    model = vlm.model
    model.gradient_checkpointing_enable()
    given = {"completion_ids": [ids(vlm, s.text) for s in samples], "sample": samples}

    def state():
        flags = [(m.training, getattr(m, "gradient_checkpointing", None)) for m in model.modules()]
        kept = [p.requires_grad for p in model.parameters()]
        offset = model.get_base_model().model.rope_deltas
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
        return flags, kept, offset, hooks, torch.is_grad_enabled()

    reward = reward_of(vlm, rule=rule)
    before, noise = state(), torch.get_rng_state()
    first = reward(**given)
    assert state() == before
    assert torch.equal(torch.get_rng_state(), noise)
    assert all(p.grad is None for p in model.parameters())
    assert reward_of(vlm, rule=rule)(**given) == first  # no dropout
    listening = state()[3]
    reward.on_train_end()
    assert state()[3] < listening
    model.gradient_checkpointing_disable()


def test_batched_scores_are_those_of_single_texts_and_targets_are_bounded(vlm, samples):
    texts = [(s, written(vlm, s.text)) for s in samples[:3]]
    for rule in RULES:
        together = scores(vlm, texts, rule=rule)
        alone = [scores(vlm, [one], rule=rule)[0] for one in texts]
        for a, b in zip(together, alone, strict=True):
            assert float(a.alignment) == pytest.approx(float(b.alignment), abs=2e-5)
    options = {"kinds": ("effect",), "n_nodes": 2}
    few = interp.extract.maps(vlm, samples[0], max_targets=4, **options)
    every = interp.extract.maps(vlm, samples[0], **options)
    assert few.sizes["target"] == 4
    roles = few["target_role"].values.tolist()
    assert roles.count("answer") == (every["target_role"] == "answer").sum()
    kept = np.isin(every["target_position"], few["target_position"])
    np.testing.assert_allclose(few["map"], every["map"][:, kept], atol=1e-5)
    assert scores(vlm, texts[:1], rule="effect", max_targets=4)[0].alignment != (
        scores(vlm, texts[:1], rule="effect")[0].alignment
    )
    with pytest.raises(ValueError, match="expected a rule of"):
        scores(vlm, texts, rule="attention")


def test_visual_attention_is_what_the_eager_model_pays(samples):
    """Against transformers' own attention weights."""
    vlm = load_model("tiny", device="cpu", attn_implementation="eager")
    found = interp.extract.maps(vlm, samples[0], kinds=("direct",))
    batch = inputs.teacher_forced(vlm.processor, samples[0], None).batch
    with torch.no_grad():
        out = vlm.model(**batch, output_attentions=True)
    visual = batch["input_ids"][0] == vlm.processor.image_token_id
    paid = torch.stack(out.attentions)[:, 0][..., visual].sum(-1).mean((0, 1))
    rows = found["target_position"].values
    np.testing.assert_allclose(found["visual_attention"], paid[rows], atol=1e-6)
    effect = interp.extract.maps(vlm, samples[0], kinds=("effect",), n_nodes=2)
    np.testing.assert_allclose(effect["visual_attention"], paid[rows], atol=1e-6)


def test_a_right_padding_processor_and_sharded_weights_are_refused(vlm, samples, tmp_path):
    reward = saliency_r1(exact, prompt="plain")
    begin = {
        "args": SimpleNamespace(output_dir=str(tmp_path)),
        "control": None,
        "state": SimpleNamespace(is_world_process_zero=True),
    }
    right = load_model("tiny", device="cpu")
    right.processor.tokenizer.padding_side = "right"
    with pytest.raises(ValueError, match="pads on the left, got 'right'"):
        reward.on_train_begin(**begin, model=right.model, processing_class=right.processor)
    right.processor.tokenizer.padding_side = "left"
    right.model.model.language_model.layers[2].mlp.up_proj.weight.data = torch.empty(0)
    with pytest.raises(ValueError, match="expected gathered parameters, got size zero for .*up_pr"):
        reward.on_train_begin(**begin, model=right.model, processing_class=right.processor)
