"""The commonest layers and functions -> what comes out of a contiguous input, by their definition.

A call on tensors whose sizes are symbols takes milliseconds, and most calls of a network give what they are given, or
that with another last axis. Where a rule does not apply, the call is made, and decides, or raises, what it will.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .sizes import layout_of

__all__ = ["layout_of_call", "layout_of_layer"]

_ACTIVATIONS = (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid)
_OF_ONE = {
    *(torch.relu, torch.tanh, torch.sigmoid, torch.Tensor.relu, torch.Tensor.tanh, torch.Tensor.sigmoid),
    *(torch.Tensor.__neg__, nn.functional.relu, nn.functional.gelu, nn.functional.silu),
}
_OF_TWO = {
    *(torch.add, torch.sub, torch.mul, torch.Tensor.add, torch.Tensor.sub, torch.Tensor.mul, torch.Tensor.div),
    *(getattr(torch.Tensor, f"__{name}__") for name in ("add", "sub", "mul", "radd", "rsub", "rmul", "truediv")),
}
_Layout = tuple[tuple[Any, ...], tuple[Any, ...], torch.dtype, torch.device]


def layout_of_layer(module: nn.Module, args: tuple[Any, ...]) -> _Layout | None:
    """Shape, strides, type and device of the output of a layer of one input; ``None`` where no rule applies."""
    layout = _contiguous(args[0])
    if layout is None or not all(_is_like(args[0], tensor) for tensor in module._parameters.values()):
        return None
    shape, stride, dtype, device = layout
    kind = type(module)
    if kind in _ACTIVATIONS:
        return None if getattr(module, "inplace", False) else layout
    if isinstance(module, nn.LayerNorm) and kind is nn.LayerNorm:
        return layout if _ends_with(shape, tuple(module.normalized_shape)) else None
    if isinstance(module, nn.GroupNorm) and kind is nn.GroupNorm:
        # where one value a channel is left, contiguous tensors have their channels last, too
        return layout if len(shape) > 1 and shape[1] == module.num_channels > 1 and stride[1] != 1 else None
    if isinstance(module, nn.Linear) and kind is nn.Linear and _ends_with(shape, (module.in_features,)):
        shape = (*shape[:-1], module.out_features)
        return shape, _contiguous_strides(shape), dtype, device
    return None


def layout_of_call(function: Any, args: tuple[Any, ...]) -> _Layout | None:
    """The same of a function called with tensors and numbers, of which the first is a tensor."""
    if len(args) != (1 if function in _OF_ONE else 2 if function in _OF_TWO else 0):
        return None
    layout = _contiguous(args[0])
    return (
        layout if all(not isinstance(other, torch.Tensor) or layout_of(other) == layout for other in args[1:]) else None
    )


def _contiguous(x: torch.Tensor) -> _Layout | None:
    """The layout of a contiguous tensor of real floating-point numbers."""
    if x.layout != torch.strided or not x.is_floating_point():
        return None
    layout = layout_of(x)
    return layout if layout[1] == _contiguous_strides(layout[0]) else None


def _contiguous_strides(shape: tuple[Any, ...]) -> tuple[Any, ...]:
    strides: list[Any] = []
    step: Any = 1
    for size in reversed(shape):
        strides.append(step)
        step = step * size
    return tuple(reversed(strides))


def _ends_with(shape: tuple[Any, ...], sizes: tuple[int, ...]) -> bool:
    """Whether the last axes have these sizes for certain, and not only in the example."""
    return len(shape) >= len(sizes) > 0 and shape[-len(sizes) :] == sizes


def _is_like(x: torch.Tensor, tensor: torch.Tensor | None) -> bool:
    return tensor is None or (tensor.dtype == x.dtype and tensor.device == x.device)
