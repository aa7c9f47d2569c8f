"""How far rounding alone moves a model: the floor under the bounds of the certificate.

Two right computations of one number differ by their rounding. In a deep model in half precision
that difference grows from layer to layer, by more in one model than in another, and a fixed bound
either calls right models wrong or lets wrong ones pass. So it is measured, by the model's own
forward alone: the embeddings of the sequence are moved by one unit in the last place here and
there, which makes all later roundings fall otherwise.
"""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.algebra.effects import cut_masks
from interp.capture.prefill import Prefill, prefill
from interp.extract.source_sets import source_sets
from interp.model.state import undisturbed
from interp.validate.case import Case, Finding, relative
from interp.validate.interventions import logits_of, states_with_cuts
from interp.vocabulary import EDGE_MODES

LARGEST = 5.0  # of the dtype's bound: beyond it a wrong extractor could pass; use float32 then
MULTIPLE = 2.0  # of what rounding moves: many checks against a few measurements
N_DRAWS = 3
SHARE_MOVED = 0.125  # of the embeddings' numbers, by one unit: as large as rounding itself


@torch.no_grad()
def rounding(case: Case) -> tuple[Finding, Case]:
    """The largest change of any layer's attention and FFN output, and of the logits.

    Returns:
        The finding, of the targets' rows, and the case with its bounds above what rounding moves:
        `logit_bound` in the targets' logits, `effect_bound` in these and in the same with the
        image cut off, `vector_bound` at their rows, `token_bound` at any token's.
    """
    query = case.query
    context = prefill(query.model, query.batch, query.rows)
    content = context.content[None]
    before, logits = _outputs(case, context.given, content)
    of_logits, of_rows, of_tokens, of_cuts = [], [], [], []
    cut_logits = _logits_with_cuts(case, context, content)
    for draw in range(N_DRAWS):
        moved = _moved(content, draw)
        after, moved_logits = _outputs(case, context.given, moved)
        moved_cuts = _logits_with_cuts(case, context, moved)
        of_cuts.append(np.abs(moved_cuts - cut_logits) / case.magnitude)
        of_rows.append(relative(moved_logits - logits, logits))
        of_logits.append(_centered(case, moved_logits - logits) / case.magnitude)
        for a, b in zip(before, after, strict=True):
            of_tokens.append(relative(b - a, a))
            of_rows.append(relative((b - a)[query.rows], a[query.rows]))
    # numpy's maximum, unlike Python's, keeps what is not a number.
    everything = of_logits, of_cuts, of_rows, of_tokens
    at_logits, at_cuts, at_rows, at_tokens = (float(np.max(one)) for one in everything)
    largest = LARGEST * case.bound
    whole, cut = (MULTIPLE * min(one, case.bound) for one in (at_logits, at_cuts))
    rows, tokens = (MULTIPLE * min(one, largest) for one in (at_rows, at_tokens))
    case = replace(
        case,
        logit_bound=max(case.bound, whole),
        effect_bound=max(case.bound, whole + cut),
        vector_bound=max(case.bound, rows),
        token_bound=max(case.bound, rows, tokens),
    )
    return Finding("rounding moves the model little", at_rows, largest), case


def _centered(case: Case, logits: Tensor) -> Float[np.ndarray, " target"]:
    """Sizes of the targets' logits above the vocabulary's mean."""
    own = logits.double().gather(1, case.query.targets[:, None])[:, 0]
    return (own - logits.double().mean(dim=1)).abs().cpu().numpy()


def _logits_with_cuts(
    case: Case, context: Prefill, content: Tensor
) -> Float[np.ndarray, "mode target"]:
    """The targets' logits when their rows cannot read the image.

    Such states are not those of training, and some models round more in them.
    """
    query = case.query
    context = replace(context, given=context.given | query.parts.entering(content))
    _, members = source_sets(query, ["image"], context.is_sink)
    hidden = cut_masks(members, query.rows, context.is_visible)[0]
    return np.stack(
        [
            logits_of(case, states_with_cuts(case, context, query.rows, hidden, mode))
            for mode in EDGE_MODES
        ]
    )


def _moved(content: Tensor, draw: int) -> Tensor:
    """Some of the embeddings' numbers, another choice each draw, one unit up or down."""
    generator = torch.Generator().manual_seed(draw)
    chance = torch.rand(content.shape, generator=generator).to(content.device)
    up, down = chance < SHARE_MOVED / 2, chance > 1 - SHARE_MOVED / 2
    factor = 1 + torch.finfo(content.dtype).eps * (up.double() - down.double())
    return (content * factor).to(content.dtype)


def _outputs(
    case: Case, given: dict, content: Tensor
) -> tuple[list[Float[Tensor, "token d_model"]], Float[Tensor, "target vocabulary"]]:
    """Outputs of attention and FFN of every layer, and the targets' logits."""
    parts, rows, outputs = case.query.parts, case.query.rows, []

    def look(_module, _args, output):
        written = output[0] if isinstance(output, tuple) else output
        outputs.append(written[0])

    modules = [module for layer in parts.layers for module in layer.writing]
    hooks = [module.register_forward_hook(look) for module in modules]
    try:
        with undisturbed(case.query.model):
            arguments = given | parts.entering(content) | {"use_cache": False}
            hidden = parts.run(arguments).last_hidden_state[0, rows]
            return outputs, parts.output_embedding(hidden)
    finally:
        for hook in hooks:
            hook.remove()
