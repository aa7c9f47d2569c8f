"""Weights of which a process holds a part are refused by name: two processes, a real FSDP model."""

import multiprocessing
import socket

import pytest
import torch
from torch import distributed
from torch.distributed.fsdp import fully_shard

import interp
from interp.model.identity import fingerprint
from interp.validate import certify


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def ask(rank: int, port: int, messages) -> None:
    """One process asks a model whose layers are sharded over both, and notes what it gets."""
    address = f"tcp://localhost:{port}"
    distributed.init_process_group("gloo", address, rank=rank, world_size=2)
    vlm = interp.load_model("tiny", device="cpu")
    for layer in vlm.model.model.language_model.layers:
        fully_shard(layer)
    sample = interp.load_samples("digits", split="test", limit=1)[0]
    calls = {
        "ledger": lambda: interp.extract.ledger(vlm, sample),
        "certify": lambda: certify(vlm, [sample]),
        "a batch": lambda: interp.extract.ledger(
            vlm.model, {"input_ids": torch.arange(5)[None]}, positions=[3]
        ),
    }
    for name, call in calls.items():
        try:
            call()
            messages.put((rank, name, "a number"))
        except Exception as error:
            messages.put((rank, name, f"{type(error).__name__}: {error}"))
    distributed.destroy_process_group()


def test_each_process_refuses_its_part_of_the_weights():
    processes = multiprocessing.get_context("fork")
    messages, port = processes.SimpleQueue(), free_port()
    children = [processes.Process(target=ask, args=(rank, port, messages)) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0, 0]
    got = [messages.get() for _ in range(6)]
    assert {(rank, name) for rank, name, _ in got} == {
        (rank, name) for rank in range(2) for name in ("ledger", "certify", "a batch")
    }
    for _, _, message in got:
        assert message.startswith("ValueError: expected gathered parameters, got a distributed")
        assert "for model.language_model.layers.0." in message and "gather sharded" in message


@pytest.mark.parametrize("name", ["lm_head.weight", "model.language_model.norm.weight"])
def test_a_weight_of_size_zero_has_no_fingerprint(name):
    model = interp.load_model("tiny", device="cpu").model
    model.get_parameter(name).data = torch.empty(0)
    with pytest.raises(ValueError, match="expected gathered parameters, got size zero for model"):
        fingerprint(model)
