"""A model answers greedily, whatever its checkpoint's own generation config says."""

import copy
import pickle

import pytest
import torch

import interp

RULES = {
    "suppress_tokens": [273, 364, 292],
    "begin_suppress_tokens": [273, 364, 292],
    "min_new_tokens": 40,
    "min_length": 200,
    "repetition_penalty": 5.0,
    "no_repeat_ngram_size": 2,
    "bad_words_ids": [[273], [364]],
    "num_beams": 3,
    "do_sample": True,
    "temperature": 9.0,
    "exponential_decay_length_penalty": (1, 9.0),
    "max_time": 1e-6,
    "return_dict_in_generate": True,
    "output_scores": True,
    "forced_eos_token_id": 5,
}


@pytest.fixture(scope="module")
def sample():
    return interp.load_samples("digits", limit=7)[6]


@pytest.fixture(scope="module")
def expected(sample):
    return interp.load_model("tiny").answer(sample.image, sample.question).text


@pytest.mark.parametrize("rule", RULES)
def test_greedy_ignores_a_checkpoints_own_rules(rule, sample, expected):
    vlm = interp.load_model("tiny")
    setattr(vlm.model.generation_config, rule, RULES[rule])
    own = vlm.model.generation_config
    assert vlm.answer(sample.image, sample.question).text == expected
    assert vlm.model.generation_config is own and getattr(own, rule) == RULES[rule]


def test_a_model_that_was_read_can_be_pickled_and_copied(sample):
    vlm = interp.load_model("tiny")
    before = interp.extract.ledger(vlm, sample)["direct"].values
    for other in (pickle.loads(pickle.dumps(vlm.model)), copy.deepcopy(vlm.model)):
        again = interp.extract.ledger(
            copy.copy(vlm).__class__(**vars(vlm) | {"model": other}), sample
        )
        assert torch.equal(torch.tensor(again["direct"].values), torch.tensor(before))


@pytest.mark.parametrize("call", ["CAM", "Grad-CAM", "TAM", "exact edge", "AttnLRP"])
def test_a_callers_autocast_changes_no_number(call, sample):
    from interp.attribution import METHODS

    vlm = interp.load_model("tiny")
    plain = METHODS[call](vlm, sample, 9).values
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = METHODS[call](vlm, sample, 9).values
    assert abs(plain - inside).max() <= 1e-6 * abs(plain).max()
