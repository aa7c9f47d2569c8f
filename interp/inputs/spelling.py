"""Token ids as the bytes that they spell."""

import re
from functools import lru_cache

from transformers.convert_slow_tokenizer import bytes_to_unicode

from interp.data.sample import THINK_CLOSE, THINK_OPEN

_BLANK = "▁"
_HTML = re.compile(r"</?[a-z]+[1-6]?>")
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


@lru_cache
def _byte_of() -> dict[str, int]:
    return {char: byte for byte, char in bytes_to_unicode().items()}


def token_bytes(tokenizer, ids: list[int]) -> list[bytes]:
    """The bytes that each token spells; an id without a token spells none.

    Tokens are those of a byte-level BPE, or pieces with a mark for each blank and bytes by number.
    """
    added, has_pieces = tokenizer.added_tokens_decoder, _has_pieces(tokenizer)
    spelled = _piece if has_pieces else _bytes_of_level
    pieces = []
    for token_id, token in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True):
        if token_id not in added:
            pieces.append(spelled(token or ""))
        else:  # as it stands in a text; a run of blanks may be one
            content = added[token_id].content
            pieces.append((content.replace(_BLANK, " ") if has_pieces else content).encode())
    return pieces


def _bytes_of_level(token: str) -> bytes:
    byte_of = _byte_of()
    return bytes(byte_of[char] for char in token)


def _piece(token: str) -> bytes:
    number = _BYTE_PIECE.fullmatch(token)
    return bytes([int(number[1], 16)]) if number else token.replace(_BLANK, " ").encode()


def _has_pieces(tokenizer) -> bool:
    """Whether a byte has a token of its own by its number, as SentencePiece names it."""
    return tokenizer.convert_tokens_to_ids("<0x0A>") not in (None, tokenizer.unk_token_id)


def steering_tokens(tokenizer) -> set[str]:
    """Tokens that steer a chat: every special or added one but those that belong to a text.

    A tokenizer names only some of its special tokens as such; all of them are added ones. To a text
    belong the tags of thinking, which are tokens of some tokenizers, and in others blanks, newlines
    and tags of HTML, added without being special.
    """
    added = tokenizer.added_tokens_decoder.values()
    steering = {token.content for token in added if token.special or not _is_text(token.content)}
    return {*steering, *tokenizer.all_special_tokens} - {THINK_OPEN, THINK_CLOSE}


def _is_text(content: str) -> bool:
    return bool(_HTML.fullmatch(content)) or content.replace(_BLANK, " ").isspace()


def steering_ids(tokenizer) -> list[int]:
    """Ids of the tokens that steer a chat."""
    ids = tokenizer.convert_tokens_to_ids(sorted(steering_tokens(tokenizer)))
    return [one for one in ids if one is not None]
