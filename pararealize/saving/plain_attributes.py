"""Tensors that modules hold as plain attributes, which no state dict has: by name, and back into a model.

``self.scale = torch.rand(8)`` is one, and so are the items of ``self.scales = [torch.rand(8), torch.rand(8)]``, which
are called ``scales.0`` and ``scales.1``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from pararealize.tracing.model_twin import plain_tensors

from .meta_model import attributes_of

__all__ = ["give_plain_tensors", "named_plain_tensors"]


def named_plain_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors by their qualified names, without those that are parameters or buffers somewhere.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> layer.scale, layer.others = torch.ones(2), [torch.zeros(3)]
        >>> {name: tuple(value.shape) for name, value in named_plain_tensors(layer).items()}
        {'scale': (2,), 'others.0': (3,)}
    """
    return {name: tensor for name, _, _, tensor in _places(model)}


def give_plain_tensors(model: nn.Module, values: Mapping[str, torch.Tensor]) -> None:
    """Give a model the tensors of these names; an attribute becomes another tensor, the item of a container is filled.

    Args:
        model: any module; tensors that have no value here, or are equal, stay as they are.
        values: by the names of :func:`named_plain_tensors`.
    """
    for name, module, key, tensor in list(_places(model)):
        value = values.get(name)
        if value is None or (value.dtype is tensor.dtype and torch.equal(value, tensor.cpu())):
            continue
        value = value.to(tensor.device)
        if getattr(module, key) is tensor:
            setattr(module, key, value)
        else:
            tensor.data = value


def _places(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, torch.Tensor]]:
    registered = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    for path, module in model.named_modules():
        for key, value in attributes_of(module):
            name = f"{path}.{key}".lstrip(".")
            for i, tensor in enumerate(plain_tensors(value)):
                if id(tensor) not in registered:
                    yield name if tensor is value else f"{name}.{i}", module, key, tensor
