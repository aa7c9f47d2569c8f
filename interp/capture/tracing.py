"""nnsight, without the method `save` that it puts on every object there is.

Whoever writes traces of their own with `value.save()` imports nnsight first, and keeps it;
`nnsight.save(value)` works either way. The only file that imports nnsight.
"""

import sys

_IS_USERS = "nnsight" in sys.modules

import nnsight  # noqa: E402 - after a look at who was first

if not _IS_USERS and nnsight._c.unmount is not None:
    nnsight._c.unmount("save")

__all__ = ["nnsight"]
