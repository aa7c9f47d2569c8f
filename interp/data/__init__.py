"""Readers of samples: one function per data set, all returning a list of `Sample`."""

from interp.sample import Sample


def load_samples(name: str, *, split: str = "test", limit: int = 64, **options) -> list[Sample]:
    """The first `limit` samples of a data set's split, in its fixed order.

    Args:
        name: "digits", the embedded scenes.
        split: "train" or "test".
        limit: how many.
        options: of the reader, for digits `seed`, `families` and `max_digits`.

    Raises:
        ValueError: an unknown data set or split.
    """
    if name != "digits":
        raise ValueError(f"expected a data set of ('digits',), got {name!r}")
    from interp.data import digits

    return digits.load(split, limit, **options)
