"""Sharing: calls about one sample use its inputs, its clean run and its reference runs together.

with sharing():
    nodes = interp.extract.node_effects(vlm, sample, references=references)
    shares = interp.extract.shapley(vlm, sample, references=references)  # no second forward
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_SHARED: ContextVar[dict | None] = ContextVar("shared", default=None)


@contextmanager
def sharing() -> Iterator[None]:
    """Context in which what calls have in common is computed once and kept until its end.

    Nobody may change the model, a sample or a reference inside.
    """
    token = _SHARED.set({})
    try:
        yield
    finally:
        _SHARED.reset(token)


def kept() -> dict | None:
    """Where values are kept inside `sharing`; None outside.

    Keys hold identities of objects, and values the objects, so that no other one gets their id.
    """
    return _SHARED.get()


def shared(name: str, owners: tuple, make: Callable[[], Any], *rest: Hashable) -> Any:
    """The value of `make`, kept inside `sharing`; outside it is made anew.

    Args:
        name: of the value.
        owners: objects that it is made of, told apart by their identity.
        make: makes the value.
        rest: of what it is made besides, told apart by their values.
    """
    store = kept()
    if store is None:
        return make()
    key = (name, *map(id, owners), *rest)
    if key not in store:
        store[key] = (owners, make())
    return store[key][1]
