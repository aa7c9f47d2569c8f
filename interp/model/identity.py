"""Which weights these are: a hash of every number, kept until a weight changes.

Training, merging and switching adapters change what a model computes under the same name, and a few
sampled values do not show it: eight edited rows of an embedding are another model.
"""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from hashlib import sha256

import torch
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.weak import WeakIdKeyDictionary

N_SAMPLED = 16  # values a weight that are read again to see whether it changed
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ADAPTERS = re.compile(
    r"^base_model\.(?!model\.)|(^|\.)modules_to_save\.|"
    + "|".join(
        rf"(^|\.){prefix}"
        for prefix in sorted({*PEFT_TYPE_TO_PREFIX_MAPPING.values(), "vera_", "pvera_"})
    )
)
_WRAPPERS = re.compile(r"^base_model\.model\.|\.base_layer(?=\.)|\.original_module(?=\.)")
_KNOWN = WeakIdKeyDictionary()  # weight → (state, digest)
_HELD: ContextVar[tuple[nn.Module, list[str], tuple[str, str]] | None] = ContextVar(
    "held", default=None
)


def fingerprint(model: nn.Module, *, adapter: bool = False) -> str:
    """A hash over names, shapes, dtypes and every value of the base's weights, or the adapter's.

    A base model has the same one inside a peft wrapper and without. An adapter's covers which
    adapters are there, active, merged and disabled, and their scaling.

    Args:
        model: with or without adapters of any of peft's kinds.
        adapter: whether to hash the adapters rather than the base.

    Raises:
        ValueError: sharded weights, of which this process holds a part.
    """
    return fingerprints(model)[adapter]


@contextmanager
def held(model: nn.Module) -> Iterator[None]:
    """Context in which nobody changes a model's weights: they are hashed once, on the way in.

    A call on a small model spends a tenth of its time on seeing that its weights are as they were.
    Adapters may be switched on and off inside.
    """
    token = _HELD.set((model, _switches(model), fingerprints(model)))
    try:
        yield
    finally:
        _HELD.reset(token)


def fingerprints(model: nn.Module) -> tuple[str, str]:
    """`fingerprint` of the base's weights and of the adapter's, for the price of one.

    Raises:
        ValueError: as `fingerprint`.
    """
    known = _HELD.get()
    if known is not None and known[0] is model and known[1] == _switches(model):
        return known[2]
    check_whole(model.named_parameters())
    weights: dict[tuple[bool, str], Tensor] = {}
    for name, weight in model.state_dict(keep_vars=True).items():
        plain, is_of_adapter = _plain_name(name)
        weights.setdefault((is_of_adapter, plain), weight)
    lines: tuple[list[str], list[str]] = ([], [])
    for key, digest in sorted(zip(weights, _digests(list(weights.values())), strict=True)):
        is_of_adapter, name = key
        weight = weights[key]
        lines[is_of_adapter].append(f"{name} {tuple(weight.shape)} {weight.dtype} {digest}")
    lines[True].extend(_switches(model))
    base, adapter = (sha256("\n".join(one).encode()).hexdigest()[:16] for one in lines)
    return base, adapter


def check_whole(weights: Iterable[tuple[str, Tensor]]) -> None:
    """Refuses weights of which this process holds a part, or nothing: no number would be right.

    Raises:
        ValueError: a weight of size zero (ZeRO-3) or a distributed one (FSDP, tensor parallelism).
    """
    for name, weight in weights:
        if isinstance(weight, DTensor):
            got = f"a distributed tensor ({weight.placements[0]}) for {name}"
        elif weight.numel() == 0:
            got = f"size zero for {name}"
        else:
            continue
        raise ValueError(
            f"expected gathered parameters, got {got}; "
            "gather sharded weights (ZeRO-3, FSDP) before extracting"
        )


@cache
def _plain_name(name: str) -> tuple[str, bool]:
    """A weight's name without any wrapper's part of it, and whether it is an adapter's."""
    plain = _WRAPPERS.sub("", name).replace(".token_adapter.", ".")
    return plain, bool(_ADAPTERS.search(plain))


def _switches(model: nn.Module) -> list[str]:
    """A line per adapted module: what is active, disabled and merged in it, and how strongly."""
    lines = []
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            state = [
                module.active_adapters,
                module.disable_adapters,
                getattr(module, "merged_adapters", []),
                getattr(module, "scaling", {}),
            ]
            lines.append(f"{_WRAPPERS.sub('', name)} {json.dumps(state, default=str)}")
    return sorted(lines)


def _digests(weights: list[Tensor]) -> list[str]:
    """A digest of every weight; of one that has not changed since it was last asked, the known."""
    digests = []
    for weight, state in zip(weights, _states(weights), strict=True):
        known = _KNOWN.get(weight)
        if known is None or known[0] != state:
            known = _KNOWN[weight] = (state, _digest(weight.detach()))
        digests.append(known[1])
    return digests


def _states(weights: list[Tensor]) -> list[tuple]:
    """Place, number of writes and some values of each weight: writes to `.data` go uncounted."""
    sampled = []
    for weight in weights:
        flat = weight.detach().reshape(-1)
        some = flat[:: max(len(flat) // N_SAMPLED, 1)][:N_SAMPLED]
        sampled.append(some.view(_BITS[some.element_size()]).long() if len(some) else some.long())
    # Gathered on one device first: every copy from a GPU waits for it.
    values = torch.cat([one.to(sampled[0].device) for one in sampled]).tolist() if sampled else []
    states, start = [], 0
    for weight, some in zip(weights, sampled, strict=True):
        n_writes = None if weight.is_inference() else weight._version
        own = tuple(values[start : start + len(some)])
        states.append((weight.data_ptr(), n_writes, tuple(weight.shape), weight.dtype, own))
        start += len(some)
    return states


def _digest(weight: Tensor) -> str:
    """SHA-256 of a weight's bytes."""
    flat = weight.cpu().contiguous().reshape(-1)
    return sha256(flat.view(torch.uint8).numpy().data).hexdigest()
