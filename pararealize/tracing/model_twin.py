"""A model -> a twin: modules of the same classes with the same Python state, over other tensors.

The model is only read, so that another thread may use it meanwhile. ``copy.deepcopy`` would do the same in three times
the time, and would refuse a model for one attribute that cannot be copied; such an attribute is shared instead.
"""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import nn

__all__ = ["copy_plain_layers", "plain_tensors", "real_twin", "twin_of"]

_ATOMIC = (type(None), bool, int, float, str, type, FunctionType, torch.dtype, torch.device, torch.Size)
_NUMBERS = frozenset((int, float, bool, str, type(None)))
_CONTENTS = ("_parameters", "_buffers", "_modules")
_PLAIN = (dict, list, set, OrderedDict)


def twin_of(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """The twin of a model over tensors that ``memo`` has by the ``id`` of the model's; it takes up the modules, too."""
    modules = list(model.modules())
    for module in modules:
        memo[id(module)] = object.__new__(type(module))  # a GraphModule's own makes a class besides
    for module in modules:
        _fill(memo[id(module)], module, memo)
    for module in modules:  # what torch.compile made calls the original, which is to be left alone
        twin = memo[id(module)]
        twin.__dict__.pop("_compiled_call_impl", None)
        if "dynamo_ctx" in vars(module) and (original := module._modules.get("_orig_mod")) is not None:
            twin.__dict__["forward"] = memo[id(original)].__call__
    result: nn.Module = memo[id(model)]
    return result


def real_twin(model: nn.Module, *, share_parameters: bool = False) -> tuple[nn.Module, dict[int, Any]]:
    """The twin of a model over copies of its tensors, and the copies by the ``id`` of the originals.

    Args:
        model: the model.
        share_parameters: let parameters look into the memory of the model's, where nothing changes them.
    """
    memo: dict[int, Any] = {}
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    attributes = [item for module in model.modules() for item in vars(module).items() if item[0] not in _CONTENTS]
    plain = [tensor for _, value in attributes for tensor in plain_tensors(value)]
    tensors |= {id(tensor): tensor for tensor in plain}
    aliases = Counter(map(_storage, tensors.values()))
    for tensor in tensors.values():
        if type(tensor) not in (torch.Tensor, nn.Parameter) or (aliases[_storage(tensor)] > 1 and tensor.is_leaf):
            memo[id(tensor)] = copy.deepcopy(tensor, memo)  # which keeps views of one memory views of one memory
            continue
        contents = tensor.detach()
        # a tensor of inference_mode could not require a gradient, and its copy may
        if not (share_parameters and isinstance(tensor, nn.Parameter)) or tensor.is_inference():
            contents = contents.clone()
        if isinstance(tensor, nn.Parameter):
            memo[id(tensor)] = nn.Parameter(contents, requires_grad=tensor.requires_grad)
        else:
            memo[id(tensor)] = contents.requires_grad_(tensor.requires_grad)
    return twin_of(model, memo), memo


def copy_plain_layers(model: nn.Module, memo: dict[int, Any]) -> None:
    """Copy the layers of torch.nn that hold nothing but tensors and plain values, for a ``copy.deepcopy`` of the model.

    That takes up what ``memo`` has by the originals' ``id``, and would take four times as long for each of them.
    """
    for module in model.modules():
        kind, contents = type(module), vars(module)
        if not kind.__module__.startswith("torch.nn.modules.") or hasattr(kind, "__deepcopy__") or module._modules:
            continue
        if not all(map(_is_plain, contents.values())) or id(module) in memo:
            continue
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            copy.deepcopy(tensor, memo)
        memo[id(module)] = twin = object.__new__(kind)
        _fill(twin, module, memo)


def _is_plain(value: Any) -> bool:
    """Whether a value is plain, or a container of tensors and plain values."""
    if isinstance(value, dict):
        return all(item is None or type(item) in (torch.Tensor, nn.Parameter) for item in value.values())
    if isinstance(value, set | tuple):
        return _NUMBERS.issuperset(map(type, value))
    return type(value) in _NUMBERS


def plain_tensors(value: Any) -> Iterator[torch.Tensor]:
    """Tensors within plain containers."""
    if type(value) in _ATOMIC or (type(value) in _PLAIN and not value):
        return
    if isinstance(value, torch.Tensor):
        yield value
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    for item in items:
        yield from plain_tensors(item)


def _storage(tensor: torch.Tensor) -> int:
    """The address of a tensor's memory; one of its own where it has none."""
    try:
        return tensor.untyped_storage().data_ptr() or id(tensor)
    except (NotImplementedError, RuntimeError):  # sparse tensors and some subclasses
        return id(tensor)


def _fill(twin: nn.Module, module: nn.Module, memo: dict[int, Any]) -> None:
    """Give a copy the state of its original."""
    slots = (name for kind in type(module).__mro__ for name in getattr(kind, "__slots__", ()) if hasattr(module, name))
    for name in slots:
        object.__setattr__(twin, name, _copied(getattr(module, name), memo))
    for name, value in vars(module).items():
        if type(value) is dict and name in _CONTENTS:
            twin.__dict__[name] = {key: item if item is None else memo[id(item)] for key, item in value.items()}
        else:
            twin.__dict__[name] = _copied(value, memo)


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """A value of a module's for its copy: whatever refers to the model refers to the copy."""
    if type(value) in _PLAIN and not value:
        return type(value)()
    if isinstance(value, _ATOMIC) or (type(value) is tuple and _NUMBERS.issuperset(map(type, value))):
        return value
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # noqa: BLE001 - locks, generators, open files: they are shared
        return value
