"""The type checker of the tests: beartype, but for calls whose own messages are tested."""

from beartype import beartype

OWN_MESSAGES = {"interp.explained.explain", "interp.loading.load_model", "interp.loading.wrap"}


def checked(function):
    """The function with its types checked; public calls say themselves what is wrong."""
    module = function.__module__
    is_call = module.startswith("interp.extract.") and module.endswith(f".{function.__name__}")
    if is_call or f"{module}.{function.__qualname__}" in OWN_MESSAGES:
        return function
    return beartype(function)
