"""Which targets of a dataset somebody means: by index, role, token or phrase."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

Wanted = int | np.integer | str | Sequence | np.ndarray


def target_index(dataset: xr.Dataset, target: Wanted) -> int:
    """The index of one target given as such, as a role (its first target) or as a token.

    Raises:
        ValueError: no such target, or a token or phrase that means several.
    """
    indices = target_indices(dataset, target)
    if len(indices) > 1:
        raise ValueError(f"expected one target, got {target!r}, which is the targets {indices}")
    return indices[0]


def target_indices(dataset: xr.Dataset, target: Wanted) -> list[int]:
    """The indices of the targets that are meant.

    Args:
        dataset: with the coordinates target_role and target_token.
        target: an index, counted from the end where it is negative; several of them; a role, for
            its first target; a token; or a phrase of consecutive tokens. White space around them
            counts where it is given.

    Raises:
        ValueError: no such target, or a token or phrase that stands in several places.
    """
    if isinstance(target, str):
        return _named(dataset, target)
    if isinstance(target, list | tuple | range | np.ndarray):
        return [_counted(dataset, one) for one in target] or [_counted(dataset, None)]
    return [_counted(dataset, target)]


def _counted(dataset: xr.Dataset, index) -> int:
    n_targets = dataset.sizes["target"]
    is_whole = isinstance(index, int | np.integer) and not isinstance(index, bool)
    if not is_whole or not -n_targets <= index < n_targets:
        raise ValueError(f"expected a target in 0..{n_targets - 1}, got {index!r}")
    return int(index) % n_targets


def _named(dataset: xr.Dataset, name: str) -> list[int]:
    of_role = np.flatnonzero(dataset["target_role"].values == name)
    if len(of_role):
        return [int(of_role[0])]
    tokens = [str(token) for token in dataset["target_token"].values]
    places = _spelled(tokens, name, str.strip if name == name.strip() else str)
    if len(places) > 1:
        raise ValueError(
            f"expected a token or phrase that stands once, got {name!r} at the targets {places}; "
            "give the index"
        )
    if not places:
        is_bare = not np.isin(dataset["target_role"].values, ("thinking", "answer")).any()
        raise ValueError(
            f"expected a target's index, role or one of its tokens {tokens}, got {name!r}"
            + "; roles and words need a processor: interp.wrap(model, processor)" * is_bare
        )
    return places[0]


def _spelled(tokens: list[str], name: str, form) -> list[list[int]]:
    """Every run of consecutive tokens whose text, in some form, is the name's."""
    wanted, found = form(name), []
    for start in range(len(tokens)):
        text = ""
        for stop in range(start, len(tokens)):
            text += tokens[stop]
            if form(text) == wanted and form(tokens[start]) and form(tokens[stop]):
                found.append(list(range(start, stop + 1)))
            if len(form(text)) > len(wanted):
                break
    return found if wanted else []
