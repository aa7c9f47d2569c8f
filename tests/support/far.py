"""A device that is not the CPU, without one: tensors that say "cuda" and refuse to meet others.

Numbers are computed on the CPU; but as on a GPU, every operation wants its tensors in one place
(numbers without dimensions and indices of a far tensor may be near), and numpy reads none of it.
"""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("cuda", 0)
ASKS = {torch.Tensor.device.__get__: DEVICE, torch.Tensor.is_cuda.__get__: True}
MOVES = ("to", "cpu", "copy_", "__get__", "__set__")
IN_PLACE = ("requires_grad_", "copy_", "__setitem__", "backward")
TAKES_INDICES = ("__getitem__", "__setitem__", "index_put_", "index_put")


class Far(torch.Tensor):
    """A tensor of the device."""


def as_far(value: torch.Tensor) -> torch.Tensor:
    with torch._C.DisableTorchFunction():
        return value if isinstance(value, Far) else value.as_subclass(Far)


def as_near(value: torch.Tensor) -> torch.Tensor:
    with torch._C.DisableTorchFunction():
        return value.as_subclass(torch.Tensor)


def is_far_device(value) -> bool:
    return isinstance(value, torch.device | str) and str(value).split(":")[0] == DEVICE.type


class FarDevice(TorchFunctionMode):
    """Inside, the device is there."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(function, "__name__", "")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if any(isinstance(one, Far) for one in tensors):
            if function in ASKS:
                return ASKS[function]
            refuse_mixtures(name, args, tensors)
        goes_far = ends_far(name, [*args, *kwargs.values()], tensors)
        args = tuple("cpu" if is_far_device(one) else one for one in args)
        kwargs = {key: "cpu" if is_far_device(one) else one for key, one in kwargs.items()}
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*args, **kwargs)
        if name in IN_PLACE:
            return result
        return tree_map_only(torch.Tensor, as_far if goes_far else as_near, result)


def ends_far(name: str, arguments: list, tensors: list[torch.Tensor]) -> bool:
    """Whether the result is on the device."""
    devices = [one for one in arguments if isinstance(one, torch.device)]
    devices += [one for one in arguments[1:] if name == "to" and isinstance(one, str)]
    if name == "cpu":
        return False
    if devices:
        return is_far_device(devices[0])
    if name == "to" and isinstance(arguments[1], torch.Tensor):
        return isinstance(arguments[1], Far)
    return any(isinstance(one, Far) for one in tensors) or any(map(is_far_device, arguments))


def refuse_mixtures(name: str, args: tuple, tensors: list[torch.Tensor]) -> None:
    """Raises what a GPU would, where tensors of both places meet."""
    if name in ("numpy", "__array__"):
        raise TypeError("can't convert cuda tensor to numpy; use .cpu() first")
    if name in TAKES_INDICES:
        if not isinstance(args[0], Far):
            raise RuntimeError(f"{name}: far indices of a near tensor")
        tensors = [one for one in args[2:] if isinstance(one, torch.Tensor)]
    strangers = [one for one in tensors if not isinstance(one, Far) and one.dim() > 0]
    if strangers and name not in MOVES:
        shapes = ", ".join(str(tuple(one.shape)) for one in strangers)
        raise RuntimeError(f"{name}: expected all tensors on {DEVICE}, got on the CPU {shapes}")


def moved(model: torch.nn.Module) -> torch.nn.Module:
    """The model on the device."""
    for module in model.modules():
        for key, value in module._parameters.items():
            if value is not None:
                module._parameters[key] = torch.nn.Parameter(as_far(value.data))
        for key, value in module._buffers.items():
            module._buffers[key] = None if value is None else as_far(value)
    return model
