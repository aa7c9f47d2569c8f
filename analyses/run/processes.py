"""The processes of one run, as `accelerate launch` (or torchrun) starts them."""

import os
from datetime import timedelta

import torch
from torch import distributed


def this_process() -> tuple[int, int]:
    """This process's number and how many there are, as the launcher says."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def this_device(asked: str | None) -> str | None:
    """The device that was asked for; of several processes each takes a GPU of its own."""
    if asked is None and this_process()[1] > 1 and torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return asked


def wait_for_all() -> None:
    """Returns when every process has come here, however long the slowest takes."""
    if this_process()[1] == 1:
        return
    if not distributed.is_initialized():
        distributed.init_process_group("gloo", timeout=timedelta(days=30))
    distributed.barrier()
