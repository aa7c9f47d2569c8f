"""The processes of one run, as `accelerate launch` (or torchrun) starts them."""

import os
from datetime import timedelta

import torch
from accelerate import PartialState


def this_process() -> tuple[int, int]:
    """This process's number and how many there are."""
    state = _state()
    return state.process_index, state.num_processes


def this_device(device: str | None) -> str | None:
    """The device that was asked for; of several processes each takes a GPU of its own."""
    state = _state()
    if device is None and state.num_processes > 1 and state.device.type != "cpu":
        return str(state.device)
    return device


def wait_for_all() -> None:
    """Returns when every process has come here, however long the slowest takes."""
    _state().wait_for_everyone()


def _state() -> PartialState:
    """accelerate's state of this process; the first call joins the others.

    Nothing but waiting goes between processes, so that one backend serves CPUs and GPUs.
    """
    options = {}
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        options = {"backend": "gloo", "timeout": timedelta(days=30)}
    return PartialState(cpu=not torch.cuda.is_available(), **options)
