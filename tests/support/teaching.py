"""Models that know some texts by heart, as trained weights differ from random ones."""

from collections.abc import Callable

import torch


def overfit(
    loss_of: Callable, texts: list, weights: list, *, n_steps: int, rate: float, last: float = 1.0
) -> float:
    """Trains weights on texts in turns; returns the last loss.

    Args:
        loss_of: the loss of one text.
        texts: as `loss_of` takes them.
        weights: that are trained.
        n_steps: of one text each.
        rate: of the first step.
        last: the last step's rate, as a share of the first one's; linear between them.
    """
    optimizer = torch.optim.AdamW(weights, lr=rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, last, n_steps)
    for step in range(n_steps):
        loss = loss_of(texts[step % len(texts)])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return loss.item()
