"""Tensors that modules hold as plain attributes, which no state dict has: by name, and back into a model.

``self.scale = torch.rand(8)`` is one, and so are the items of ``self.scales = [torch.rand(8), torch.rand(8)]``, which
are called ``scales.0`` and ``scales.1``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn

from pararealize.distributed.checkpoint.tensor_file import TYPES
from pararealize.tracing.model_twin import plain_tensors

__all__ = ["attributes_of", "give_plain_tensors", "named_plain_tensors"]

_OURS = ("pararealize.coarse.", "pararealize.network.")


def attributes_of(module: nn.Module) -> list[tuple[str, Any]]:
    """The attributes of a module that are neither parameters, buffers and submodules nor hooks."""
    own = vars(nn.Module())
    return [(key, value) for key, value in vars(module).items() if key not in own]


def named_plain_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors by a qualified name each, without those that are parameters or buffers somewhere.

    One that several modules hold has the name that comes first. Those that no file of tensors can hold (sparse,
    quantized, of a class of their own) are left out.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> layer.scale, layer.others = torch.ones(2), [torch.zeros(3)]
        >>> {name: tuple(value.shape) for name, value in named_plain_tensors(layer).items()}
        {'scale': (2,), 'others.0': (3,)}
    """
    named = dict[int, tuple[str, torch.Tensor]]()
    for name, _, _, tensor in _places(model):
        named.setdefault(id(tensor), (name, tensor))
    return dict(named.values())


def give_plain_tensors(model: nn.Module, values: Mapping[str, torch.Tensor]) -> None:
    """Give a model the tensors of these names; an attribute becomes another tensor, the item of a container is filled.

    Args:
        model: any module; tensors that have no value here, or are equal, stay as they are, and one that several modules
            hold is one afterwards.
        values: by the names of :func:`named_plain_tensors`.
    """
    others = dict[int, torch.Tensor]()
    for name, tensor in named_plain_tensors(model).items():
        value = values.get(name)
        if value is None or (value.dtype is tensor.dtype and torch.equal(value, tensor.detach().cpu())):
            continue
        others[id(tensor)] = value.to(tensor.device).requires_grad_(tensor.requires_grad)
    for _, module, key, tensor in list(_places(model)):
        if id(tensor) not in others:
            continue
        if getattr(module, key) is tensor:
            setattr(module, key, others[id(tensor)])
        else:
            tensor.data = others[id(tensor)].detach()


def _places(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, torch.Tensor]]:
    """Name, module, attribute and tensor; none of what this library's own modules hold for themselves."""
    registered = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    for path, module in model.named_modules():
        is_ours = isinstance(module, fx.GraphModule) or type(module).__module__.startswith(_OURS)
        for key, value in () if is_ours else attributes_of(module):
            name = f"{path}.{key}".lstrip(".")
            for i, tensor in enumerate(plain_tensors(value)):
                if id(tensor) not in registered and _can_be_kept(tensor):
                    yield name if tensor is value else f"{name}.{i}", module, key, tensor


def _can_be_kept(tensor: torch.Tensor) -> bool:
    plain = type(tensor) is torch.Tensor and tensor.layout is torch.strided and not tensor.is_quantized
    return plain and tensor.dtype in TYPES.values()
