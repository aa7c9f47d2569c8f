"""Parts of a reward: placebos, scaling, functions of one's own, and where maps come from."""

import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import interp
from interp.inputs.completions import completion
from interp.maps.alignment import share_inside
from interp.scoring import Saliency, saliencies
from tests.train import test_grpo
from train import grpo
from train.rewards import Batch, Reward, Term, Written
from train.rewards.accuracy import Accuracy, Format
from train.rewards.batch import spread_of, within_groups
from train.rewards.placebos import Length, RandomText, Rolled, Scaled, moved, placebo_of
from train.rewards.saliency import Alignment, OfMap
from train.rewards.sources import Sources


def silent(_name, _value):
    pass


@pytest.fixture(scope="module")
def samples():
    return interp.load_samples("digits", limit=3)


@pytest.fixture(scope="module")
def written(tiny, samples):
    """Three texts of each scene, as a group of completions: right, wrong, of invalid format."""
    found = []
    for sample in samples:
        for text, verdict in ((sample.text, 1.0), (sample.text + "1", 0.0), ("7", 0.0)):
            ids = tiny.processor.tokenizer(text, add_special_tokens=False).input_ids
            own = completion(
                tiny.processor.tokenizer, [*ids, tiny.processor.tokenizer.eos_token_id]
            )
            group = len(found) // 3
            found.append(Written(len(found), sample, own, text != "7", verdict, group))
    return found


def batch_of(tiny, written) -> Batch:
    def make(some, **options):
        return saliencies(tiny, [(one.sample, one.text) for one in some], **options)

    return Batch(written, make)


def test_a_placebo_reads_the_same_map_elsewhere(tiny, written):
    batch = batch_of(tiny, written)
    rolled = Rolled(rule="direct")(batch, silent)
    maps = batch.saliencies(rule="direct")
    for value, found, one in zip(rolled, maps, written, strict=True):
        if not one.is_well_formed:
            assert value == 0.0
            continue
        boxes = moved(one.sample.boxes, found.map.shape, one.sample.id)
        if boxes is None:
            assert value == 0.0
            continue
        assert not np.allclose(boxes, one.sample.boxes)
        sides = [(b[:, 2:] - b[:, :2]).round(9).tolist() for b in (boxes, one.sample.boxes)]
        assert sides[0] == sides[1] and (boxes >= -1e-9).all() and (boxes <= 1 + 1e-9).all()
        assert value == share_inside(found.map.values, boxes)
    assert RandomText()(batch, silent) == RandomText()(batch, silent)
    values = RandomText()(batch, silent)
    assert len({round(one, 9) for one in values}) == 1 + sum(one.is_well_formed for one in written)
    assert Length()(batch, silent)[0] == len(written[0].text.token_ids)


def test_a_scaled_placebo_varies_as_the_map_does(tiny, written):
    """Inside each group, and not between groups; where the placebo is constant it pays nothing."""
    batch = batch_of(tiny, written)
    like = Alignment()
    paid = Scaled(Length(), like)(batch, silent)
    own, wanted = (within_groups(values, batch) for values in (paid, like(batch, silent)))
    lengths = within_groups(Length()(batch, silent), batch)
    for group in batch.groups():
        assert spread_of(own[group]) == pytest.approx(spread_of(wanted[group]), rel=1e-9)
        assert np.mean(own[group]) == pytest.approx(0, abs=1e-12)
        assert np.corrcoef(own[group], lengths[group])[0, 1] == pytest.approx(1)

    class Constant:
        name, reads_maps = "constant", False

        def __call__(self, batch, _log):
            return [2.0] * len(batch.written)

    assert Scaled(Constant(), like)(batch, silent) == [0.0] * len(written)
    with pytest.raises(ValueError, match="expected a placebo of"):
        placebo_of("sugar")


def test_a_function_of_ones_own_is_a_part(tiny, written, samples):
    """From (map, sample, text) to a number; None makes the whole None, if it is paid."""

    def top_cell(found: Saliency, sample, text) -> float | None:
        assert text.is_complete
        return None if sample.id == samples[1].id else float(found.map.max())

    part = OfMap(top_cell, "top")
    values = part(batch_of(tiny, written), silent)
    maps = batch_of(tiny, written).saliencies(rule="direct")
    assert values[0] == float(maps[0].map.max())
    assert [values[3], values[4], values[5]] == [None, None, 0.0]
    ids = [list(one.text.token_ids) for one in written]
    given = {"completion_ids": ids, "sample": [one.sample for one in written]}

    def judge(*_):
        return 1.0

    paid = Reward(judge, [Term(Accuracy()), Term(part, 2.0)], prompt="plain")
    paid.listen(tiny)
    totals = paid(**given)
    assert totals[0] == pytest.approx(1 + 2 * values[0], abs=1e-5)
    assert totals[3] is None and totals[5] == 1.0
    assert paid.skipped == {"no top": 2}
    measured = Reward(judge, [Term(Accuracy()), Term(part, 0.0)], prompt="plain")
    measured.listen(tiny)
    assert measured(**given) == [1.0] * 9
    with pytest.raises(ValueError, match="expected parts with names of their own"):
        Reward(judge, [Term(Accuracy()), Term(Accuracy())])


def test_scaled_parts_weigh_alike_inside_a_group(tiny, written):
    """Each part divided by its spread in the group; one that is constant there adds nothing."""
    ids = [list(one.text.token_ids) for one in written]
    verdicts = iter([one.accuracy for one in written] * 2)
    given = {"completion_ids": ids, "sample": [one.sample for one in written]}
    terms = [Term(Accuracy()), Term(Format()), Term(Alignment(), 0.5)]
    reward = Reward(lambda *_: next(verdicts), terms, scale_parts=True, prompt="plain")
    reward.listen(tiny)
    totals = np.array(reward(**given)).reshape(3, 3)
    batch = batch_of(tiny, written)
    expected = np.zeros((3, 3))
    for term in terms:
        own = within_groups(term.part(batch, silent), batch).reshape(3, 3)
        width = np.sqrt((own**2).mean(1, keepdims=True))
        expected += term.weight * np.where(width > 1e-6, own / np.maximum(width, 1e-6), 0)
    np.testing.assert_allclose(totals, expected, atol=1e-3)
    assert reward.accuracy == [one.accuracy for one in written]


def test_options_of_the_command_name_the_parts():
    def names(**options):
        return [(term.part.name, term.weight) for term in grpo.terms(grpo.Task(1, **options))]

    assert names() == [("accuracy", 1.0), ("format", 1.0), ("saliency", 1.0)]
    assert names(map="none") == [("accuracy", 1.0), ("format", 1.0)]
    assert names(placebo="rolled", saliency_weight=0.5)[2:] == [("rolled", 0.5), ("saliency", 0.0)]
    own = names(reward_function="tests.train.test_parts:border", function_weight=0.1)
    assert own[3] == ("border", 0.1)
    for wrong in ("nowhere:f", "tests.train.test_parts:nothing"):
        with pytest.raises(ValueError, match="expected reward_function as module:function"):
            names(reward_function=wrong)


def border(found, _sample, _text) -> float:
    """A reward for looking away from the border."""
    return 1 - float(found.map.values[0].sum() / found.map.values.sum())


@pytest.mark.parametrize("source", ["generation", "policy", "prompts"])
@pytest.mark.parametrize("rule", ["direct", "effect"])
def test_a_training_pays_the_same_from_every_source(tmp_path, monkeypatch, source, rule):
    """Rewards of real steps, out of the cache or a common prompt, against a prefill of each."""
    seen = []
    right = Sources._first

    def spy(self, texts, numbers, options):
        found, used = right(self, texts, numbers, options)
        alone = saliencies(self.vlm, texts, **options)
        for mine, theirs in zip(found, alone, strict=True):
            largest = float(np.abs(theirs.map).max())
            np.testing.assert_allclose(mine.map, theirs.map, atol=2e-5 * largest)
            assert mine.visual_attention == pytest.approx(theirs.visual_attention, abs=1e-5)
        seen.append(used)
        return found, used

    monkeypatch.setattr(Sources, "_first", spy)
    # The cold start writes several texts to a prompt; where all are one, a prefill is as good.
    cold = {"model_name_or_path": "tiny-cold", "num_generations": 4, "max_steps": 2}
    # With two iterations TRL computes the policy's own log-probabilities beforehand.
    cold |= {"num_iterations": 2} if source == "policy" else {}
    test_grpo.run(tmp_path, map=rule, sources=[source], **cold)
    assert seen[0] == source and set(seen) <= {source, "texts"}


def test_a_source_that_is_wrong_is_found_and_not_asked_again(tmp_path, monkeypatch, caplog):
    from interp.capture import generated

    caplog.set_level(logging.WARNING)
    right = generated.Generated._run
    monkeypatch.setattr(
        generated.Generated,
        "_run",
        lambda self, k, n, content, positions: _doubled(right(self, k, n, content, positions)),
    )
    used = []
    first = Sources._first
    monkeypatch.setattr(Sources, "_first", lambda *given: used.append(first(*given)) or used[-1])
    test_grpo.run(tmp_path, max_steps=2, sources=["generation"])
    assert [name for _, name in used] == ["texts", "texts"]
    said = [r.message for r in caplog.records if "maps from generation differ" in r.message]
    assert len(said) == 1


def _doubled(run):
    half = len(run.values) // 2
    values = [one.roll(1, dims=1) * (2 if n < half else 1) for n, one in enumerate(run.values)]
    return type(run)(run.keys, values, run.content, run.positions, run.rows)


def test_unknown_sources_and_weights_are_refused(tiny):
    with pytest.raises(ValueError, match="expected sources of"):
        Sources(tiny, ["thin air"])
    with pytest.raises(ValueError, match="expected a finite weight of format, got nan"):
        Term(Format(), float("nan"))
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(("use_vllm", "listens"), [(False, "generation"), (True, "policy")])
def test_a_reward_listens_to_what_the_trainer_will_do(tmp_path, use_vllm, listens):
    """vLLM leaves no cache here, and Hugging Face's generation makes the other forward needless."""
    vlm = interp.load_model("tiny", device="cpu")
    begin = {
        "args": SimpleNamespace(output_dir=str(tmp_path), use_vllm=use_vllm),
        "state": SimpleNamespace(is_world_process_zero=True),
        "control": None,
        "model": vlm.model,
        "processing_class": vlm.processor,
    }
    reward = Reward(lambda *_: 1.0, [Term(Alignment())], prompt="plain")
    reward.on_train_begin(**begin)
    assert list(reward.sources.listeners) == [listens]
    reward.on_train_end()
    without_maps = Reward(lambda *_: 1.0, [Term(Accuracy())], prompt="plain")
    without_maps.on_train_begin(**begin)
    assert not without_maps.sources.listeners


def test_the_placebo_of_a_gated_reward_is_gated_and_an_unmoved_one_keeps_the_rest(tiny, written):
    gated = Alignment(is_gated=True)
    paid = Scaled(RandomText(), gated)(batch_of(tiny, written), silent)
    for group in batch_of(tiny, written).groups():
        wrong = [paid[k] for k in group if not written[k].accuracy]
        assert len({round(one, 12) for one in wrong}) == 1  # all alike, as of the map
    whole = np.array([[0.0, 0.0, 1.0, 1.0]])
    filling = [replace(one, sample=replace(one.sample, boxes=whole)) for one in written[:3]]
    logged = {}
    assert Rolled(rule="direct")(batch_of(tiny, filling), logged.__setitem__) == [0.0] * 3
    assert logged["rolled/unmoved"] == pytest.approx(2 / 3)  # the third has no map


def test_groups_are_those_that_were_sampled_whatever_samples_are_called(tiny, samples):
    """Two pictures of one id and one question are two groups; two groups of one sample too."""
    same = [replace(one, id="sample", question="?", answer="7") for one in samples[:2]]
    reward = Reward(lambda *_: 1.0, [Term(Accuracy())], prompt="plain")
    reward.group_size = 2
    assert reward._groups([same[0], same[0], same[1], same[1]]) == [0, 0, 1, 1]
    assert reward._groups([same[0]] * 4) == [0, 0, 1, 1]
    reward.group_size = 0
    assert len(set(reward._groups([samples[0], samples[0], samples[1]]))) == 2
