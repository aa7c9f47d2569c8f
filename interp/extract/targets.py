"""Which targets a map is asked for, and in which gauge."""

from dataclasses import replace

import numpy as np

from interp.data.sample import Sample
from interp.extract.attention_maps import THROUGH_THINKING
from interp.extract.question import Query, ask, whole_numbers
from interp.inputs.prompts import given_text
from interp.model.vlm import VLM
from interp.vocabulary import MAP_KINDS, MAP_VARIANTS


def question(
    vlm: VLM, sample: Sample, *, kinds, only, max_targets, variant, completion, gauge
) -> tuple[Query, str]:
    """The targets that are asked for, and the gauge; raises ValueError as `maps`."""
    kinds = tuple(kinds)
    _check(kinds, variant)
    if isinstance(vlm, VLM):
        completion = given_text(vlm.processor.tokenizer, completion)
    if completion is not None and not completion.is_complete and set(kinds) & set(THROUGH_THINKING):
        raise ValueError(
            f"{sample.id}: expected a completion that ends with its end token, got one cut off "
            f"after {len(completion.token_ids)} tokens; raise max_new_tokens or leave it out"
        )
    full_query = ask(vlm, sample, completion=completion)
    chosen = _fewer(full_query, _chosen(full_query, only, sample.id), max_targets)
    query = replace(
        full_query,
        rows=full_query.rows[chosen],
        targets=full_query.targets[chosen],
        target_text=tuple(full_query.target_text[k] for k in chosen),
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
    all_targets = list(range(len(roles)))
    if only is None:
        return all_targets
    if isinstance(only, str):
        chosen = [k for k in all_targets if roles[k] == only]
        if not chosen:
            raise ValueError(
                f"{name}: expected targets of the role {only!r}, got {sorted(set(roles))}"
            )
        return chosen
    only = whole_numbers(only, f"{name}: targets").tolist()
    if not only or set(only) - set(all_targets):
        raise ValueError(f"{name}: expected targets in 0..{len(all_targets) - 1}, got {only}")
    return only


def _fewer(query: Query, chosen: list[int], limit: int | None) -> list[int]:
    """At most `limit` of the chosen targets, answers before thinking, else evenly spaced."""
    if limit is not None and (not isinstance(limit, int | np.integer) or limit < 1):
        raise ValueError(f"expected max_targets >= 1, got {limit}")
    if limit is None or len(chosen) <= limit:
        return chosen
    is_answer = [query.tokens.role[int(query.rows[k]) + 1] == "answer" for k in chosen]
    answers = [k for k, mine in zip(chosen, is_answer, strict=True) if mine]
    thinking = [k for k, mine in zip(chosen, is_answer, strict=True) if not mine]
    spaced_answers = _evenly(answers, limit)
    return sorted(spaced_answers + _evenly(thinking, limit - len(spaced_answers)))


def _evenly(these: list[int], limit: int) -> list[int]:
    at = np.linspace(0, len(these) - 1, min(limit, len(these))).round().astype(int)
    return [these[k] for k in np.unique(at)] if limit else []
