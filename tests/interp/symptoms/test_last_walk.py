"""The last walk through a stranger's diary: each thing that was typed, and what comes now."""

import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest

import interp
from interp.inputs.completions import completion
from train import evaluate, grpo


@pytest.fixture(scope="module")
def scene():
    return interp.load_samples("digits", limit=1)[0]


@pytest.fixture(scope="module")
def cut(tiny, scene):
    """A text that was cut off in front of its end token."""
    return completion(tiny.processor.tokenizer, list(tiny.answers([scene])[0].token_ids[:-1]))


def test_what_an_adapter_folder_lacks_is_said_before_the_base_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("interp.loading.load_weights", None)
    with pytest.raises(ValueError, match="adapter_config.json, got .*, which has none"):
        interp.load_model("tiny", adapter=str(tmp_path))


@pytest.mark.parametrize("option", ["map", "placebo", "counterfactual"])
def test_a_training_names_the_option_that_is_wrong_before_it_loads(option):
    with pytest.raises(ValueError, match=f"expected --{option} of .* got 'nosuch'"):
        grpo.Task(n_samples=1, **{option: "nosuch"})


def test_evaluate_takes_the_options_of_a_model_and_refuses_no_scenes(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate", "tiny", "--limit", "0"])
    with pytest.raises(SystemExit):
        evaluate.main()
    assert "expected --limit of 1 or more, got 0" in capsys.readouterr().err
    asked = ["evaluate", "tiny", "--dtype", "float64", "--attn-implementation", "eager"]
    monkeypatch.setattr(sys, "argv", [*asked, "--max-pixels", "9999", "--device", "cpu"])
    given = {}

    def load(_name, **options):
        given.update(options)
        raise KeyboardInterrupt  # enough

    monkeypatch.setattr(interp, "load_model", load)
    with pytest.raises(KeyboardInterrupt):
        evaluate.main()
    assert given["dtype"] == "float64" and given["attn_implementation"] == "eager"
    assert given["max_pixels"] == 9999 and given["device"] == "cpu"


def test_a_partner_that_is_not_there_is_named(tiny, scene):
    with pytest.raises(ValueError, match="expected a Sample as partner, .* got NoneType"):
        interp.extract.words(tiny, scene, None)


def test_one_kind_of_map_may_be_a_string(tiny, scene):
    one = interp.extract.maps(tiny, scene, kinds="effect")
    assert one["kind"].values.tolist() == ["effect"]
    (each,) = interp.extract.each("maps", tiny, [scene], kinds="effect")
    np.testing.assert_allclose(each["map"], one["map"], atol=1e-5)
    with pytest.raises(ValueError, match="expected kinds of .* got \\('nosuch',\\)"):
        interp.extract.maps(tiny, scene, kinds="nosuch")


def test_alignment_takes_boxes_as_lists(tiny, scene):
    saliency = interp.extract.maps(tiny, scene).vlm.map("answer")
    boxes = [[0, 0, 0.5, 0.5]]
    found = interp.alignment.alignment(saliency, boxes)
    expected = interp.alignment.alignment(saliency, np.array(boxes))
    assert found["alignment"].item() == expected["alignment"].item()
    with pytest.raises(ValueError, match="expected boxes .* of numbers, got"):
        interp.alignment.alignment(saliency, [["left", 0, 1, 1]])


def test_whose_text_and_whether_it_was_cut_off_stand_on_a_maps_own_plot(tiny, scene, cut):
    ledger = interp.extract.ledger(tiny, scene, gauge="contrast", foils="runner-up")
    ledger.vlm.map("answer").plot()
    title = plt.gca().get_title()
    plt.close("all")
    assert "reference" in title and "gauge contrast" in title
    ledger = interp.extract.ledger(tiny, scene, completion=cut, positions=None)
    ledger.vlm.map(0).plot()
    assert "cut off" in plt.gca().get_title()
    plt.close("all")


def test_a_folder_that_is_no_image_has_a_name(tiny):
    with pytest.raises(ValueError, match=r"^\S+: expected a readable image file"):
        interp.explain(tiny, ".", "which digit is red?")
