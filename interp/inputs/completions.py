"""A model's text: where thinking and answer are, and whether it has the form that is asked for."""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from interp.data.sample import THINK_CLOSE, THINK_OPEN
from interp.inputs.spelling import steering_tokens, token_bytes

_CJK_MARKS = "。、·「」『』【】《》〈〉“”‘’…"
_NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_NUMBER = re.compile(rf"\b(?:{'|'.join(_NUMBERS)})\b")
_ARTICLE = re.compile(r"\b(?:a|an|the) (?=\w)")
_THINK = re.compile(rb"\s*" + THINK_OPEN.encode() + rb"(.*?)" + THINK_CLOSE.encode(), re.DOTALL)


@dataclass(frozen=True)
class Completion:
    """A model's text for one image and question."""

    text: str
    """Decoded, without the end token."""
    token_ids: tuple[int, ...]
    """As sampled, end token included where there is one; the truth that everything else reads."""
    thinking: str | None
    """Text between the tags, stripped; None without a complete thinking span."""
    answer: str
    """Text after the thinking span; all of it where no tag opens at the start; empty where one
    opens and never closes."""
    is_complete: bool
    """It ended with the end token rather than at the length limit."""
    source: str = "given"
    """"own" where `VLM.answer` wrote it, "given" where somebody else did."""


def _text_spans(written: bytes) -> dict[str, slice]:
    """Byte ranges of thinking and answer in what a model wrote; absent where there is none."""
    think = _THINK.match(written)
    if think is None:
        is_open = written.lstrip().startswith(THINK_OPEN.encode())
        spans = {} if is_open else {"answer": _stripped(written, 0, len(written))}
    else:
        spans = {
            "thinking": _stripped(written, think.start(1), think.end(1)),
            "answer": _stripped(written, think.end(), len(written)),
        }
    return {role: span for role, span in spans.items() if span.stop > span.start}


def _stripped(text: bytes, start: int, stop: int) -> slice:
    content = text[start:stop]
    lead = len(content) - len(content.lstrip())
    return slice(start + lead, max(start + len(content.rstrip()), start + lead))


def completion(tokenizer, ids: list[int], ends: Iterable[int] = ()) -> Completion:
    """A completion from generated ids; padding behind the end token is dropped.

    Args:
        tokenizer: whose end token ends a text.
        ids: as generated.
        ends: more tokens that end one, as a generation config names them.
    """
    ends, pad = {tokenizer.eos_token_id, *ends}, tokenizer.pad_token_id
    stops = [i for i, token_id in enumerate(ids) if token_id in ends or token_id == pad]
    is_complete = bool(stops) and ids[stops[0]] in ends
    token_ids = ids[: stops[0] + is_complete] if stops else ids
    written = b"".join(token_bytes(tokenizer, token_ids[: len(token_ids) - is_complete]))
    spans = _text_spans(written)
    texts = {role: written[span].decode("utf-8", errors="replace") for role, span in spans.items()}
    return Completion(
        text=written.decode("utf-8", errors="replace"),
        token_ids=tuple(token_ids),
        thinking=texts.get("thinking"),
        answer=texts.get("answer", ""),
        is_complete=is_complete,
    )


def is_well_formed(tokenizer, text: Completion) -> bool:
    """Exactly one <think>…</think> with something in it, an answer, the end token; nothing else.

    A special or added token among the text (a new turn, say) would make it another conversation.
    """
    inner = text.token_ids[: len(text.token_ids) - text.is_complete]
    written = set(tokenizer.convert_ids_to_tokens(inner))
    return (
        text.is_complete
        and text.text.count(THINK_OPEN) == text.text.count(THINK_CLOSE) == 1
        and bool(text.thinking)
        and bool(text.answer)
        and not written & steering_tokens(tokenizer)
    )


def comparable(answer: str) -> str:
    """An answer as it is compared: case, articles, outer punctuation and white space do not count.

    An article counts where no word follows it: "A" is a choice, and vitamin A is no vitamin.
    English number words up to ten are digits, as in VQA's evaluation: "seven" is "7".
    """
    text = "".join(_unraised(char) for char in answer)
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    text = text.rstrip(" .,;:!?\"'`)" + _CJK_MARKS).lstrip(" \"'`(" + _CJK_MARKS)
    text = _ARTICLE.sub("", text)
    return _NUMBER.sub(lambda found: str(_NUMBERS.index(found[0])), text)


def _unraised(char: str) -> str:
    """A raised sign with a mark before it: 5² is not 52."""
    return "^" + char if unicodedata.decomposition(char).startswith("<super>") else char


def is_right(answer: str | None, reference: str | None) -> bool:
    """Whether an answer is the reference answer; never where one of them is empty or not known.

    Rewards, reports, evaluation and the pool of references all ask this function.
    """
    if answer is None or reference is None:
        return False
    return comparable(answer) == comparable(reference) != ""
