"""The experiment: its plan is what docs/EXPERIMENT.md says, and a run measures what it should."""

import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from trl import GRPOConfig

import interp
from interp.extract.question import ask
from interp.extract.references import Pool, references
from tests.support import ROOT
from train.experiment import measure, one, runs
from train.experiment.arms import ARMS, BEFORE, CANDIDATES, COLD3
from train.grpo import Task, terms
from train.guide import Guide, losses_of
from train.options import parsed
from train.policy import Policy

PLAN = runs.plan()


def options_of(run, monkeypatch):
    """Parsed dataclasses, as `train.grpo` makes them of a run's command."""
    monkeypatch.chdir(ROOT)
    command = ["grpo", *run.command("tiny-cold", "out")]
    monkeypatch.setattr("sys.argv", command)
    return parsed(Policy, Task, Guide, GRPOConfig)


def test_plan_has_the_seeds_that_the_page_says():
    counts = Counter((run.base == COLD3, run.arm, run.scenes) for run in PLAN)
    assert {counts[False, arm, "ordinary"] for arm in ARMS if ARMS[arm].shortcut_seeds == 3} == {5}
    assert all(counts[False, a, "shortcut"] == arm.shortcut_seeds for a, arm in ARMS.items())
    trained = [run for run in PLAN if run.arm != BEFORE]
    assert len(trained) == 83
    names = [run.name for run in [*PLAN, *runs.calibration()]]
    assert len(set(names)) == len(names)


def test_every_arm_is_a_training_that_differs_in_what_its_name_says(monkeypatch):
    alike = None
    for run in [*PLAN, *runs.calibration()]:
        if run.arm == BEFORE or run.seed:
            continue
        policy, task, guide, config = options_of(run, monkeypatch)
        assert terms(task)
        assert bool(losses_of(guide)) == run.arm.startswith(("ease", "map-gradient"))
        facts = (config.loss_type, config.max_steps, config.beta, config.learning_rate, policy)
        alike = alike or facts
        assert facts == alike
        is_shortcut = run.scenes == "shortcut"
        assert task.split == ("shortcut" if is_shortcut else "train")
        assert task.sample_seed == (2000 if run.stage == "calibration" else 1000)


def test_placebos_differ_from_their_arms_in_the_evidence_alone():
    differences = {
        name: dict(ARMS[arm.placebo].options.items() - arm.options.items())
        for name, arm in ARMS.items()
        if arm.placebo
    }
    assert differences == {
        "saliency-r1": {"placebo": "rolled"},
        "effect": {"placebo": "rolled"},
        "ease": {"sham": True},
        "faithful-mr1": {"counterfactual": "out-of-box"},
        "map-gradient": {"sham": True},
    }
    assert all(ARMS[arm.placebo].base == arm.base for arm in ARMS.values() if arm.placebo)


def test_weights_are_among_those_that_were_tried(monkeypatch):
    for arm, candidates in CANDIDATES.items():
        tried = [ARMS[arm].options | one for one in candidates.values()]
        run = runs.Run(arm, "ordinary", 0)
        chosen = options_of(run, monkeypatch)[1:3]
        assert any(
            options_of(runs.Run(arm, "ordinary", 0, options=one), monkeypatch)[1:3] == chosen
            for one in tried
        )


@pytest.fixture(scope="module")
def measured():
    vlm = interp.load_model("tiny-cold")
    samples = interp.load_samples("digits", split="test", limit=6, seed=3)
    return vlm, samples, measure.ordinary(vlm, samples)


def test_effects_are_those_of_whole_forwards_with_other_embeddings(measured, monkeypatch):
    """T by two forwards of the model itself, the second with the mean in the evidence's place."""
    vlm, samples, table = measured
    for k, sample in enumerate(samples[:3]):
        asked = measure._asked(vlm, sample)
        (row,), (target,), (foil,) = (asked[name] for name in ("positions", "targets", "foils"))
        assert vlm.processor.tokenizer.decode([target]).strip() in sample.answer
        assert vlm.processor.tokenizer.decode([foil]).strip() in sample.twin.answer
        query = ask(vlm, sample)
        mean = references(vlm, sample, pool=Pool(vlm, samples), kinds=["mean"])["mean"].content
        for name in measure.SETS:
            is_evidence = query.tokens.is_evidence[query.tokens.is_visual]
            chosen = torch.from_numpy(is_evidence if name == "evidence" else ~is_evidence)
            logits = []
            for is_replaced in (False, True):
                with monkeypatch.context() as patch:
                    if is_replaced:
                        _replace(vlm, patch, mean, chosen)
                    with torch.no_grad():
                        out = vlm.model(**query.batch).logits[0, row]
                    logits.append(float(out[target] - out[foil]))
            assert logits[0] - logits[1] == pytest.approx(
                table[f"node {name} contrast"][k], abs=1e-3
            )


def _replace(vlm, patch, mean, chosen):
    """Other features for some visual tokens, where the model scatters them into its input."""
    inner = vlm.model.model
    own = inner.get_image_features

    def features(*given, **named):
        found = own(*given, **named)
        (images,) = found.pooler_output
        found.pooler_output = [torch.where(chosen[:, None], mean.to(images), images)]
        return found

    patch.setattr(inner, "get_image_features", features)


def test_game_is_the_public_one_on_the_model_s_own_words(measured):
    vlm, samples, table = measured
    for k, sample in enumerate(samples[:3]):
        game = interp.extract.words(vlm, sample, sample.twin, max_new_tokens=64)
        owen = game["words_owen"].isel(drawn=0).sel(gauge="contrast", norm="live")
        for player in owen["player"].values.tolist():
            ours = table[f"words {player}"][k]
            assert ours == pytest.approx(float(owen.sel(player=player)), abs=1e-3)


def test_direct_writes_and_alignments_are_shares_and_no_number_is_missing(measured):
    _, _, table = measured
    for kind in measure.KINDS:
        assert table[f"alignment {kind}"].between(0, 1).all()
    needed = [name for name in table if name.startswith(("node", "edge", "direct", "right"))]
    assert len(needed) == 11
    assert np.isfinite(table[needed].to_numpy(dtype=float)).all()
    gap = (table["pixels evidence contrast"] - table["vector evidence contrast"]).abs()
    assert gap.notna().all()


def test_tables_go_through_json():
    table = pd.DataFrame({"sample": ["a", "b"], "x": [1 / 3, np.nan]})
    assert json.loads(json.dumps(measure.as_columns(table))) == {
        "sample": ["a", "b"],
        "x": [0.333333, None],
    }


@pytest.mark.long
@pytest.mark.parametrize("scenes", ["ordinary", "shortcut"])
def test_a_run_is_trained_measured_and_not_done_again(scenes, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(runs.N_HELD_OUT, "experiment", 4)
    run = runs.Run("map-gradient", scenes, 1)
    few = {"max_steps": 2, "n_samples": 8, "per_device_train_batch_size": 8}
    result = one.do(run, tmp_path / "results", tmp_path / "runs", **few)
    assert result["steps"] == 2
    assert len(result["measures"]["ordinary"]["right"]) == 4
    assert result["options"]["gradient_weight"] > 0
    path = one.done(run, tmp_path / "results")
    assert json.loads(path.read_text()) == result
    path.write_text(json.dumps(result | {"steps": 7}))
    assert one.do(run, tmp_path / "results", tmp_path / "runs")["steps"] == 7


@pytest.mark.long
def test_a_base_with_a_focus_token_is_made_once(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    few = tmp_path / "few.yaml"
    content = (ROOT / "train/configs/tiny-focus.yaml").read_text()
    few.write_text(content.replace("n_samples: 2560", "n_samples: 64"))
    monkeypatch.setattr("train.experiment.bases.FOCUS", str(few))
    run = next(run for run in PLAN if run.arm == "faithful-mr1")
    made = one.base_of(run, tmp_path)
    assert interp.load_model(made).processor.chat_template.count("<Focus>") >= 1
    monkeypatch.setattr("train.experiment.bases._anchored", None)
    assert one.base_of(run, tmp_path) == made
