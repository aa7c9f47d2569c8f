"""Help and refusals of the training commands."""

import sys

import pytest
import yaml

from train import evaluate, grpo, merge
from train.grpo import Task
from train.options import given
from train.policy import Policy
from train.refusals import in_one_line


@pytest.fixture
def argv(monkeypatch):
    return lambda *words: monkeypatch.setattr(sys, "argv", ["x", *map(str, words)])


def test_help_is_this_packages_options_and_names_where_the_others_are(argv, capsys):
    texts = []
    for word in ("--help", "--help-all"):
        argv(word)
        with pytest.raises(SystemExit) as ended:
            given(Policy, Task, grpo.GRPOConfig)
        assert ended.value.code == 0
        texts.append(capsys.readouterr().out)
    for name in (*Policy.__dataclass_fields__, *Task.__dataclass_fields__):
        assert f"--{name} " in texts[0]
    assert "--help-all" in texts[0] and "--num_generations " not in texts[0]
    assert "--num_generations " in texts[1] and "--saliency_weight " in texts[1]


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (merge.main, ["nope", "--out", "x"]),
        (evaluate.main, ["nope"]),
        (merge.main, ["tiny", "--out", "x"]),
    ],
)
def test_what_cannot_be_loaded_is_one_line_and_code_2(main, words, argv, capsys):
    argv(*words)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert (
        "error: expected" in last
        and f"got {'the model tiny' if words[0] == 'tiny' else repr('nope')}" in last
    )


def test_an_error_of_another_library_keeps_its_traceback():
    with pytest.raises(yaml.YAMLError), in_one_line():
        yaml.safe_load("a: [")
    with pytest.raises(ValueError, match="invalid literal"), in_one_line():
        yaml.safe_load("!!int a")
