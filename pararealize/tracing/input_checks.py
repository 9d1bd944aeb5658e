"""Example inputs as given -> plain dense tensors on the model's device, under names that code can have."""

from __future__ import annotations

import keyword
from collections.abc import Iterable

import torch

from pararealize.errors import ExampleError

__all__ = ["check_names", "plain_tensor"]


def plain_tensor(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The values of a tensor as one of torch's own class, on a device, and as an object of its own.

    A class that gives its tensors another meaning by ``__torch_function__`` alone (torchvision's images) is a plain
    tensor to every module; one with a ``__torch_dispatch__`` is not.

    Raises:
        ExampleError: it is none that a forward pass can be recorded with.
    """
    if fault := _fault(tensor, device):
        raise ExampleError(
            f"an example input is {fault}, and networks are converted for plain dense tensors; pass one of the shape "
            "and type that the model works on, and do the change from one to the other inside the model or before it"
        )
    with torch.no_grad():
        values = tensor.as_subclass(torch.Tensor)
        return (values.clone() if tensor.is_inference() else values.detach()).to(device)


def _fault(tensor: torch.Tensor, device: torch.device) -> str:
    """What kind of tensor it is that no graph is recorded with; nothing where it is a plain one."""
    if tensor.is_nested:
        return "a nested tensor"
    if tensor.layout != torch.strided:
        return f"a tensor of layout {tensor.layout}"
    if tensor.is_quantized:
        return f"a quantised tensor ({tensor.dtype})"
    if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        return f"a {type(tensor).__name__}, whose operations are its class's own"
    if torch._is_functional_tensor(tensor) or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return "a tensor inside a transformation of torch.func"
    if tensor.is_meta and device.type != "meta":
        return f"a tensor on the meta device for a model on {device}"
    return ""


def check_names(names: Iterable[str]) -> None:
    """Refuse inputs whose names no signature could have, as keys of a forward's ``**kwargs`` may be.

    Raises:
        ExampleError: it names them.
    """
    faults = [name for name in names if not name.isidentifier() or keyword.iskeyword(name) or name == "self"]
    if faults:
        raise ExampleError(
            f"inputs are called {', '.join(map(repr, faults))}, which the converted network's forward cannot call its "
            "parameters; rename them, or wrap the model in a module whose forward gives them other names"
        )
