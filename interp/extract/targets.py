"""Which targets a map is asked for, and in which gauge."""

from dataclasses import replace

import numpy as np

from interp.data.sample import Sample
from interp.extract.attention_maps import THROUGH_THINKING
from interp.extract.question import Query, ask
from interp.model.vlm import VLM
from interp.vocabulary import MAP_KINDS, MAP_VARIANTS


def question(
    vlm: VLM, sample: Sample, *, kinds, only, max_targets, variant, completion, gauge
) -> tuple[Query, str]:
    """The targets that are asked for, and the gauge; raises ValueError as `maps`."""
    _check(kinds, variant)
    if completion is not None and not completion.is_complete and set(kinds) & set(THROUGH_THINKING):
        raise ValueError(
            f"{sample.id}: expected a completion that ends with its end token, got one cut off "
            f"after {len(completion.token_ids)} tokens; raise max_new_tokens or leave it out"
        )
    every = ask(vlm, sample, completion=completion)
    chosen = _fewer(every, _chosen(every, only, sample.id), max_targets)
    query = replace(
        every,
        rows=every.rows[chosen],
        targets=every.targets[chosen],
        target_text=tuple(every.target_text[k] for k in chosen),
    )
    return query, gauge or ("raw" if variant == "release" else "centered")


def _check(kinds, variant) -> None:
    if not kinds or set(kinds) - set(MAP_KINDS):
        raise ValueError(f"expected kinds of {MAP_KINDS}, got {tuple(kinds)}")
    if variant not in MAP_VARIANTS:
        raise ValueError(f"expected a variant of {MAP_VARIANTS}, got {variant!r}")
    released = {"direct", "bottleneck"}
    if variant == "release" and set(kinds) - released:
        raise ValueError(f"expected kinds of {sorted(released)} for the release, got {kinds}")


def _chosen(query: Query, only, name: str) -> list[int]:
    """Indices of the targets that are asked for."""
    roles = [query.tokens.role[row + 1] for row in query.rows.tolist()]
    every = list(range(len(roles)))
    if only is None:
        return every
    if isinstance(only, str):
        found = [k for k in every if roles[k] == only]
        if not found:
            raise ValueError(
                f"{name}: expected targets of the role {only!r}, got {sorted(set(roles))}"
            )
        return found
    if not len(only) or set(only) - set(every):
        raise ValueError(f"{name}: expected targets in 0..{len(every) - 1}, got {list(only)}")
    return list(only)


def _fewer(query: Query, chosen: list[int], limit: int | None) -> list[int]:
    """At most `limit` of the chosen targets, answers before thinking, else evenly spaced."""
    if limit is None or len(chosen) <= limit:
        return chosen
    if limit < 1:
        raise ValueError(f"expected max_targets >= 1, got {limit}")
    is_answer = [query.tokens.role[int(query.rows[k]) + 1] == "answer" for k in chosen]
    answers = [k for k, mine in zip(chosen, is_answer, strict=True) if mine]
    others = [k for k, mine in zip(chosen, is_answer, strict=True) if not mine]
    kept = _evenly(answers, limit)
    return sorted(kept + _evenly(others, limit - len(kept)))


def _evenly(these: list[int], limit: int) -> list[int]:
    at = np.linspace(0, len(these) - 1, min(limit, len(these))).round().astype(int)
    return [these[k] for k in np.unique(at)] if limit else []
