"""A model -> the copy that a recording runs on: the same modules and Python state, parameters and buffers on fakes.

The user's model is only read, so that another thread may use it meanwhile. ``copy.deepcopy`` would do the same in three
times the time, and would refuse a model for one attribute that cannot be copied; such an attribute is shared instead.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from .leaves import Leaves

__all__ = ["FakeCopy", "copy_on_fakes"]

_ATOMIC = (type(None), bool, int, float, str, type, FunctionType, torch.dtype, torch.device, torch.Size)
_NO_FAST_PATH = nn.MultiheadAttention | nn.TransformerEncoderLayer


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FakeCopy:
    """The copy of a model that a recording runs on.

    Attributes:
        model: the copy.
        leaves: what calls its leaf modules, and knows the real tensor of every fake one.
        attributes: qualified names of parameters and buffers by the ``id`` of the fake tensor, and of the real one: a
            closure of the user's may hold the model itself.
        constants: tensors that modules hold as plain attributes, which stay real, by qualified name.
    """

    model: nn.Module
    leaves: Leaves
    attributes: dict[int, tuple[torch.Tensor, str]]
    constants: dict[str, torch.Tensor]


def copy_on_fakes(model: nn.Module) -> FakeCopy:
    """Copy a model, with fake tensors in place of its parameters and buffers; tied ones become one fake tensor."""
    # Tensors that a model keeps as plain attributes stay real, and calls on them and on fake ones are allowed.
    leaves = Leaves(FakeTensorMode(allow_non_fake_inputs=True))
    memo: dict[int, Any] = {}
    attributes: dict[int, tuple[torch.Tensor, str]] = {}
    constants: dict[str, torch.Tensor] = {}
    modules = dict(model.named_modules())
    for path, module in modules.items():
        memo[id(module)] = module.__class__.__new__(module.__class__)
        prefix = f"{path}." if path else ""
        # torch's fused attention gives another tuple; it is not taken where a parameter requires a gradient
        graded = isinstance(module, _NO_FAST_PATH) or any(isinstance(m, _NO_FAST_PATH) for m in module.children())
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and id(tensor) not in memo:
                    fake = memo[id(tensor)] = leaves.fake(
                        tensor, requires_grad=graded and tensors is module._parameters
                    )
                    leaves.real[id(fake)] = tensor
                    attributes[id(fake)] = fake, prefix + name
                    attributes[id(tensor)] = tensor, prefix + name
        for name, value in vars(module).items():
            for tensor in _tensors(value):
                memo.setdefault(id(tensor), tensor)
            if isinstance(value, torch.Tensor):
                constants.setdefault(prefix + name, value)
    for module in modules.values():
        _fill(memo[id(module)], module, memo)
    return FakeCopy(model=memo[id(model)], leaves=leaves, attributes=attributes, constants=constants)


def _fill(twin: nn.Module, module: nn.Module, memo: dict[int, Any]) -> None:
    """Give a copy the state of its original."""
    slots = (name for kind in type(module).__mro__ for name in getattr(kind, "__slots__", ()) if hasattr(module, name))
    for name in slots:
        object.__setattr__(twin, name, _copied(getattr(module, name), memo))
    for name, value in vars(module).items():
        if type(value) is dict and name in ("_parameters", "_buffers", "_modules"):
            twin.__dict__[name] = {key: item if item is None else memo[id(item)] for key, item in value.items()}
        else:
            twin.__dict__[name] = _copied(value, memo)


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """A value of a module's for its copy: whatever refers to the model refers to the copy."""
    if isinstance(value, _ATOMIC):
        return value
    if isinstance(value, dict | list | set) and not value:
        return type(value)() if type(value) in (dict, list, set) else copy.copy(value)
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # noqa: BLE001 - locks, generators, open files: they are shared
        return value


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Tensors within plain containers, which stay what they are in the copy."""
    if isinstance(value, torch.Tensor):
        yield value
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    for item in items:
        yield from _tensors(item)
