"""Roles of tokens: whose turn of the chat a token stands in, and thinking or answer.

Spans are found on the token ids themselves: every token of a byte-level BPE stands for bytes, the
bytes spell the text, and roles are read off byte ranges. Nothing is decoded and tokenized again,
because sampled ids need not survive that. A tag's last token may swallow the newline behind it, and
a text's last token the newline before the closing tag; a token belongs to a text if it holds at
least one byte of it once white space around it is stripped.
"""

import re

import numpy as np
from jaxtyping import Bool, Int

from interp.inputs.completions import _stripped, _text_spans
from interp.vocabulary import ROLES

# A chat's turns: ChatML, with the role on a line of its own or before a blank; the form whose turns
# begin with a capitalised role and a colon; and that in which a system prompt begins a question.
_TURNS = (
    re.compile(rb"<\|im_start\|>(system|user|assistant)[\n ](.*?)(<\|im_end\|>|$)", re.DOTALL),
    re.compile(
        rb"(?:^(?:<\|im_start\|>|<\|begin_of_text\|>)?|(?<=<end_of_utterance>\n))"
        rb"(System|User|Assistant):(.*?)(<end_of_utterance>|$)",
        re.DOTALL,
    ),
    re.compile(rb"<start_of_turn>(user|model)\n(.*?)(<end_of_turn>|$)", re.DOTALL),
)

_TURN_ROLE = {b"system": "system", b"user": "question"}


def roles_of(
    spelled: list[bytes],
    is_mark: Bool[np.ndarray, " token"],
    last_token: str | None,
    system: str | None = None,
) -> list[str]:
    """The role of each token, from the byte ranges of the chat turns.

    Marks are the chat's own tokens and those of images; a question begins behind them. What a text
    spells letter by letter is no mark.

    Args:
        spelled: the tokens' bytes.
        is_mark: which of them are marks.
        last_token: the one that ends all text.
        system: the system prompt, where it may stand in front of the first question.
    """
    text = b"".join(spelled)
    chat = b"".join(
        one if mark else one.replace(b"<", b"\0")
        for one, mark in zip(spelled, is_mark, strict=True)
    )
    bare = b"".join(
        b" " * len(one) if mark else one for one, mark in zip(spelled, is_mark, strict=True)
    )
    is_marked = np.repeat(is_mark, [len(piece) for piece in spelled])
    template = ROLES.index("template")
    codes = np.full(len(text) + 1, template)
    by_form = [[*form.finditer(chat)] for form in _TURNS]
    # A chat's own form begins it; what a text quotes of the other comes later.
    turns = min((one for one in by_form if one), key=lambda one: one[0].start(), default=[])
    kinds = [turn[1].lower() for turn in turns]
    last = max((n for n, kind in enumerate(kinds) if kind == b"user"), default=-1)
    for number, (turn, kind) in enumerate(zip(turns, kinds, strict=True)):
        start, stop = turn.span(2)
        if kind in (b"assistant", b"model") and number > last:
            # Some models end a turn with another token than the one that ends all their text.
            ahead = bare[start:stop]  # marks in front of all that a template puts there
            start += len(ahead) - len(ahead.lstrip())
            written = text[start:stop].removesuffix((last_token or "").encode())
            for role, span in _text_spans(written).items():
                codes[start + span.start : start + span.stop] = ROLES.index(role)
        else:
            is_earlier = kind != b"system" and number < last
            role = "earlier" if is_earlier else _TURN_ROLE[kind]
            if number == 0 and kind == b"user":  # some chats have no turn for it
                prompt = _prompt_in(text, _stripped(text, start, stop), system)
                codes[prompt] = ROLES.index("system")
                start = max(start, prompt.stop)
            span = _stripped(bare, start, stop)
            codes[span] = np.where(is_marked[span], template, ROLES.index(role))
    return [ROLES[code] for code in _of_pieces(spelled, codes, template)]


def _prompt_in(text: bytes, span: slice, system: str | None) -> slice:
    """Where the system prompt stands at the beginning of a span; empty where it does not."""
    prefix = (system or "").strip().encode()
    is_there = text.startswith(prefix, span.start)
    return slice(span.start, span.start + len(prefix)) if is_there else slice(0, 0)


def _of_pieces(spelled: list[bytes], codes: Int[np.ndarray, " byte"], template: int) -> list[int]:
    """The first code of each piece's bytes that is not the template's."""
    ends = np.cumsum([len(piece) for piece in spelled])
    found = []
    for piece, end in zip(spelled, ends, strict=True):
        own = [code for code in codes[end - len(piece) : end] if code != template]
        found.append(int(own[0]) if own else template)
    return found
