"""The commonest layers and functions -> what comes out of them, by their definition.

A call on tensors whose sizes are symbols takes milliseconds, and most calls of a network give what they are given, or
that with another last axis; recurrent layers take as many calls as there are steps. Where a rule does not apply, the
call is made, and decides, or raises, what it will.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .sizes import expression_of, is_symbolic, layout_of

__all__ = ["layout_of_call", "layout_of_layer", "layouts_of_recurrence"]

_ACTIVATIONS = (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid)
_OF_ONE = {
    *(torch.relu, torch.tanh, torch.sigmoid, torch.Tensor.relu, torch.Tensor.tanh, torch.Tensor.sigmoid),
    *(torch.Tensor.__neg__, nn.functional.relu, nn.functional.gelu, nn.functional.silu),
}
_OF_TWO = {
    *(torch.add, torch.sub, torch.mul, torch.Tensor.add, torch.Tensor.sub, torch.Tensor.mul, torch.Tensor.div),
    *(getattr(torch.Tensor, f"__{name}__") for name in ("add", "sub", "mul", "radd", "rsub", "rmul", "truediv")),
}
# with how many axes their inputs have
_BATCH_NORMS: dict[type[nn.Module], tuple[int, ...]] = {
    nn.BatchNorm1d: (2, 3), nn.BatchNorm2d: (4,), nn.BatchNorm3d: (5,),
}  # fmt: skip
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
    if isinstance(module, _BatchNorm) and len(shape) in _BATCH_NORMS.get(kind, ()):
        return layout if shape[1] == module.num_features > 1 and _normalises(module, args[0], stride) else None
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


def layouts_of_recurrence(module: nn.Module, args: tuple[Any, ...]) -> tuple[_Layout, ...] | None:
    """Output and last states of ``nn.RNN``, ``nn.GRU`` and ``nn.LSTM``, with sizes as the input has them.

    For T steps, a batch of B and D directions: ``(T, B, D·P)``, of which the first two axes are transposed with
    ``batch_first``, and ``(D·layers, B, P)`` of each state, where P is the size of what is handed on, and that of a
    cell its own. ``None`` where no rule applies: packed sequences, first states of other sizes, other types.
    """
    x = args[0]
    if not isinstance(module, nn.RNNBase) or not isinstance(x, torch.Tensor) or not x.is_floating_point():
        return None
    if x.layout != torch.strided or x.ndim not in (2, 3) or expression_of(x.shape[-1]) != module.input_size:
        return None
    if not all(_is_like(x, tensor) for tensor in module._parameters.values()):
        return None
    turned = module.batch_first and x.ndim == 3
    steps, *batch = (x.shape[1], x.shape[0]) if turned else x.shape[:-1]
    directions = 2 if module.bidirectional else 1
    widths = [module.proj_size or module.hidden_size] + [module.hidden_size] * isinstance(module, nn.LSTM)
    states = [(directions * module.num_layers, *batch, width) for width in widths]
    given = args[1] if len(args) > 1 else None
    if given is not None and not _have_sizes(x, given if isinstance(module, nn.LSTM) else (given,), states):
        return None
    shape = (steps, *batch, directions * widths[0])
    strides = _contiguous_strides(shape)
    if turned:
        shape, strides = (shape[1], shape[0], *shape[2:]), (strides[1], strides[0], *strides[2:])
    return (shape, strides, x.dtype, x.device), *((s, _contiguous_strides(s), x.dtype, x.device) for s in states)


def _normalises(module: _BatchNorm, x: torch.Tensor, stride: tuple[Any, ...]) -> bool:
    """Whether a batch norm takes an input, and what comes out has its axes in the same order in memory."""
    statistics = module.running_mean, module.running_var
    if not all(_is_like(x, tensor) for tensor in statistics) or (x.ndim > 2 and stride[1] == 1):
        return False
    if not module.training and None not in statistics:
        return True
    others: list[Any] = [size for axis, size in enumerate(x.shape) if axis != 1]
    return bool(math.prod(size.node.hint if is_symbolic(size) else size for size in others) > 1)  # or it raises


def _have_sizes(x: torch.Tensor, values: Any, shapes: list[tuple[Any, ...]]) -> bool:
    """Whether there are as many tensors like x, of these sizes for certain."""
    if not isinstance(values, tuple) or len(values) != len(shapes):
        return False
    return all(
        isinstance(value, torch.Tensor)
        and _is_like(x, value)
        and tuple(map(expression_of, value.shape)) == tuple(map(expression_of, shape))
        for value, shape in zip(values, shapes, strict=True)
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
