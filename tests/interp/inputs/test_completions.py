"""One definition of a right answer, and everybody asks it."""

import ast

import pytest

from interp.extract.references import Pool
from interp.inputs.completions import is_right
from tests.support import ROOT, odd_models

SAME = [
    ("7", "7."),
    ("The cat", "cat"),
    ("a red cat.", "Red  cat"),
    ("Yes!", "yes"),
    ("“no”", "“no”"),
    ("(B)", "b"),
    ("A", "a"),
    ("A", "A."),
    ("½", "1⁄2"),
    ("STRASSE", "straße"),
    ("'left'", "left"),
    ("New York", "new\u00a0york"),
    ("the the cat", "the cat"),
]
OTHER = [
    ("7", "17"),
    ("7", "-7"),
    (".5", "5"),
    ("left", "not left"),
    ("vitamin A", "vitamin"),
    ("red", "red or blue"),
    ("", ""),
    (".", "."),
    ("cat", "cats"),
    ("A", "B"),
    ("a", ""),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_form_does_not_count(one, other):
    assert is_right(one, other) and is_right(other, one)


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_content_does(one, other):
    assert not is_right(one, other) and not is_right(other, one)


def test_the_pool_of_references_reward_and_reports_ask_it(processor):
    """The same answer in another form is no other answer."""
    from dataclasses import replace

    from train.judge import exact_match

    assert exact_match("what?", "The cat", "cat.") == 1.0
    model = odd_models.make("two_to_one", processor)
    mine = replace(odd_models.sample(), id="mine", answer="cat")
    same = replace(odd_models.sample(), id="same", answer="The cat.")
    other = replace(odd_models.sample(), id="other", answer="dog")
    pool = Pool(odd_models.vlm(model, processor), [same, other])
    assert [pool.samples[k].id for k in pool.candidates(mine, "cat")] == ["other"]


def test_nobody_else_compares_answers():
    """No file of the package lower-cases or compares an answer by itself."""
    for top in ("interp", "analyses", "train"):
        for path in (ROOT / top).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.Compare) or path.name == "completions.py":
                    continue
                sides = [ast.unparse(one) for one in (node.left, *node.comparators)]
                is_of_answers = [
                    bool(".answer" in side or "reference_answer" in side) for side in sides
                ]
                assert sum(is_of_answers) < 2, f"{path}:{node.lineno}: {ast.unparse(node)}"
