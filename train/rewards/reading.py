"""How a policy reads its own text: the likelihood of each token, and where the rows look."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.capture.prefill import Prefills
from interp.capture.replay import Replay, replays
from interp.data.sample import Sample
from interp.extract.question import Query, ask
from interp.inputs.completions import Completion
from interp.model.state import undisturbed
from interp.model.vlm import VLM

AT_ONCE = 8  # texts in one forward


@dataclass(frozen=True)
class Reading:
    """One text, by its tokens."""

    log_likelihood: Float[np.ndarray, " token"]
    """log π(y_t | before), at temperature 1."""
    on_evidence: Float[np.ndarray, " token"]
    """Attention of the row that predicts y_t on the boxes, by area, mean over layers and heads; on
    the whole image where there are no boxes."""
    role: tuple[str, ...]
    """One of `interp.vocabulary.ROLES`."""


def readings(
    vlm: VLM,
    texts: Sequence[tuple[Sample, Completion]],
    forward: Callable[[list[Query], list[int]], Prefills],
) -> list[Reading]:
    """Each text as the policy reads it.

    Args:
        vlm: the policy as it is now.
        texts: samples, each with a text of the policy's.
        forward: makes the prefills of some of them, which are told by number.

    Raises:
        ValueError: as `interp.extract.ledger`.
    """
    found: list[Reading] = []
    for first in range(0, len(texts), AT_ONCE):
        part = texts[first : first + AT_ONCE]
        with torch.no_grad(), undisturbed(vlm.model):
            queries = [_asked(vlm, *one) for one in part]
            batch = forward(queries, list(range(first, first + len(part))))
            rows = [query.rows for query in queries]
            played = batch.kept(rows) or replays(vlm.model, batch, rows)
            found += [_reading(*one) for one in zip(queries, played, strict=True)]
    return found


def _asked(vlm: VLM, sample: Sample, text: Completion) -> Query:
    """All tokens of the text as targets."""
    query = ask(vlm, sample, completion=text)
    n_all = len(query.tokens.ids)
    return ask(
        vlm, sample, completion=text, positions=range(n_all - len(text.token_ids) - 1, n_all - 1)
    )


def _reading(query: Query, played: Replay) -> Reading:
    tokens = query.tokens
    weights = tokens.box_overlap if query.has_boxes else tokens.is_visual.astype(float)
    on = torch.from_numpy(weights).to(query.rows.device, torch.float32)
    shares = torch.stack([(one[0].float() @ on).mean(dim=-1) for one in played.weights])
    return Reading(
        log_likelihood=_log_likelihood(query, played.final[0]).cpu().numpy(),
        on_evidence=shares.mean(dim=0).cpu().numpy(),
        role=tuple(tokens.role[row + 1] for row in query.rows.tolist()),
    )


def _log_likelihood(query: Query, final: Float[Tensor, "target d_model"]) -> Float[Tensor, " _"]:
    parts = query.parts
    logits = parts.output_embedding(parts.final_norm(final.to(query.model.dtype)))
    return logits.float().log_softmax(dim=-1).gather(1, query.targets[:, None])[:, 0]
