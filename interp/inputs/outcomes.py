"""The words that a model writes before its answer, and where two answers part (METHODS.md 3.7)."""

from dataclasses import dataclass

from interp.inputs.completions import Completion, _text_spans
from interp.inputs.spelling import token_bytes


@dataclass(frozen=True)
class Words:
    """The text before an answer: thinking, tags and white space."""

    ids: tuple[int, ...]
    """As sampled."""
    spelled: bytes
    glue: bytes
    """White space before the answer that shares a token with it."""


@dataclass(frozen=True)
class Outcome:
    """The first place at which two answers differ."""

    shared: tuple[int, ...]
    """Tokens that both answers begin with."""
    target: int
    """The first token of the one that is not the other's; the end token ends a shorter one."""
    foil: int
    """The other's token there."""


def words_of(tokenizer, text: Completion) -> Words:
    """The words before the answer of a text.

    Raises:
        ValueError: no closed thinking span, or no answer behind it.
    """
    if text.thinking is None or not text.answer:
        what = "an answer behind the thinking" if text.thinking is not None else "a thinking span"
        raise ValueError(f"expected a text with {what}, got {text.text!r:.80}")
    pieces = token_bytes(tokenizer, list(text.token_ids))
    start, at = _text_spans(b"".join(pieces))["answer"].start, 0
    for number, piece in enumerate(pieces):
        if at + len(piece) > start:
            glue = piece[: start - at]
            return Words(text.token_ids[:number], b"".join(pieces[:number]), glue)
        at += len(piece)
    raise AssertionError("an answer has a first token")


def outcome(tokenizer, words: Words, answer: str, other: str) -> Outcome:
    """Where two answers behind the same words part, as tokens.

    Raises:
        ValueError: answers that are the same tokens, or a first token that merges with the words.
    """
    both = [_answer_ids(tokenizer, words, one) for one in (answer, other)]
    for number, (mine, theirs) in enumerate(zip(*both, strict=False)):
        if mine != theirs:
            return Outcome(tuple(both[0][:number]), mine, theirs)
    raise ValueError(f"expected two different answers, got {answer!r} and {other!r}")


def _answer_ids(tokenizer, words: Words, answer: str) -> list[int]:
    """An answer's tokens behind the words, from one string, with the end token."""
    try:
        text = (words.spelled + words.glue).decode() + answer
    except UnicodeDecodeError as error:
        raise ValueError(
            f"expected words of whole characters, got {words.spelled!r:.80}"
        ) from error
    ids = tokenizer(text, add_special_tokens=False).input_ids
    at = 0
    for number, piece in enumerate(token_bytes(tokenizer, ids)):
        if at == len(words.spelled):
            return [*ids[number:], tokenizer.eos_token_id]
        at += len(piece)
    raise ValueError(f"expected an answer of tokens of its own, got {answer!r} merged with a tag")


def first_token(tokenizer, words: Words, answer: str) -> int:
    """The first token of an answer behind the words.

    Raises:
        ValueError: a first token that merges with the words.
    """
    return _answer_ids(tokenizer, words, answer)[0]


def parting(own: tuple[int, ...], other: tuple[int, ...]) -> int | None:
    """How many tokens two texts begin with together; None where one begins with the other."""
    for number, (mine, theirs) in enumerate(zip(own, other, strict=False)):
        if mine != theirs:
            return number
    return None
