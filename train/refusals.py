"""One line and exit code 2 for what a training command refuses."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import walk_tb

OWN = ("interp", "train", "__main__")


@contextmanager
def in_one_line() -> Iterator[None]:
    """Ends the process with the message of a ValueError that this package raised.

    Such a message says what was expected and what came. One that another library raised, in the
    middle of a training perhaps, keeps its traceback.
    """
    try:
        yield
    except ValueError as error:
        *_, (frame, _) = walk_tb(error.__traceback__)
        if frame.f_globals["__name__"].split(".")[0] not in OWN:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
