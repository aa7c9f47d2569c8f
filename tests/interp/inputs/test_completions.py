"""One definition of a right answer, and everybody asks it."""

import ast

import pytest

from interp.extract.references import Pool
from interp.inputs.completions import completion, is_right
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
    ("A", "(A)"),
    ("猫。", "猫"),
    ("「猫」", "猫"),
    ("“cat”", "cat"),
    ("ＡＢＣ", "abc"),
    ("７", "7"),
    ("H₂O", "H2O"),
    ("5²", "5^2"),
    ("seven", "7."),
    ("Three cats", "3 cats"),
    ("the one", "1"),
    ("TEN", "10"),
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
    ("A+", "A"),
    ("A+", "+"),
    ("5²", "52"),
    ("5²", "5"),
    ("10%", "10"),
    ("3.0", "30"),
    ("yes", "no"),
    ("猫", "犬"),
    ("seven", "17"),
    ("seventeen", "7teen"),
    ("someone", "some1"),
    ("none", "0"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_form_does_not_count(one, other):
    assert is_right(one, other) and is_right(other, one)


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_content_does(one, other):
    assert not is_right(one, other) and not is_right(other, one)


@pytest.mark.parametrize(("one", "other"), [(None, "7"), ("7", None), (None, None)])
def test_nothing_is_right_where_no_answer_is_known(one, other):
    assert is_right(one, other) is False


def test_every_end_token_ends_a_text(processor):
    """Qwen's generation config has two; what lies behind the first is padding."""
    tokenizer = processor.tokenizer
    text = tokenizer("7", add_special_tokens=False).input_ids
    end, pad, other = tokenizer.eos_token_id, tokenizer.pad_token_id, 11
    for last in (end, other):
        found = completion(tokenizer, [*text, last, pad, pad], ends=(end, other))
        assert (found.text, found.is_complete) == ("7", True)
        assert found.token_ids == (*text, last)
    assert not completion(tokenizer, [*text, pad], ends=(other,)).is_complete or pad == end
    assert not completion(tokenizer, text, ends=(other,)).is_complete


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
