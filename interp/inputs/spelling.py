"""Token ids as the bytes that they spell."""

from functools import lru_cache

from transformers.convert_slow_tokenizer import bytes_to_unicode

from interp.data.sample import THINK_CLOSE, THINK_OPEN


@lru_cache
def _byte_of() -> dict[str, int]:
    return {char: byte for byte, char in bytes_to_unicode().items()}


def token_bytes(tokenizer, ids: list[int]) -> list[bytes]:
    """The bytes that each token of a byte-level BPE spells; an id without a token spells none."""
    added = tokenizer.added_tokens_decoder
    byte_of = _byte_of()
    pieces = []
    for token_id, token in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True):
        if token_id in added:
            pieces.append(added[token_id].content.encode())
        else:
            pieces.append(bytes(byte_of[char] for char in token or ""))
    return pieces


def steering_tokens(tokenizer) -> set[str]:
    """Tokens that steer a chat: every special or added one but the tags of thinking.

    The tags are tokens of some tokenizers, and belong to a text. A tokenizer names only some of its
    special tokens as such; all of them are added ones.
    """
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    return {*added, *tokenizer.all_special_tokens} - {THINK_OPEN, THINK_CLOSE}


def steering_ids(tokenizer) -> list[int]:
    """Ids of the tokens that steer a chat."""
    ids = tokenizer.convert_tokens_to_ids(sorted(steering_tokens(tokenizer)))
    return [one for one in ids if one is not None]
