"""A module and its inputs -> operations and elements written, forward and backward, counted on fake tensors."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from .dry_run import DryRun, StandIn
from .recurrence import join_steps

__all__ = ["FORMULAS", "OperationCount", "count_operations"]


class OperationCount(NamedTuple):
    """Of one call, for the whole batch: ``(forward, backward)`` of each."""

    flops: tuple[int, int]
    elements: tuple[int, int]


def count_operations(module: nn.Module, inputs: Callable[[StandIn], list[Any]]) -> OperationCount:
    """The operations of a call and of its backward pass, and the elements that both write.

    Args:
        module: what is called; it is not changed, and nothing is allocated.
        inputs: makes its arguments, given what makes a fake of a tensor.

    Example:
        >>> from pararealize.analysis.counter import count_operations
        >>> count_operations(nn.Linear(8, 4), lambda fake: [torch.empty(2, 8)])
        OperationCount(flops=(128, 128), elements=(8, 8))
    """
    with torch.inference_mode(False), torch.enable_grad(), FakeTensorMode(allow_non_fake_inputs=True):

        def fake(tensor: torch.Tensor) -> torch.Tensor:
            return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=tensor.device)

        dry_run = DryRun(module, inputs(fake), fake)
        join_steps(dry_run.module)
        with _Written() as written, _flop_counter() as counter:
            outputs = dry_run.forward()
            flops, elements = counter.get_total_flops(), written.elements
            dry_run.backward(outputs)
            weights = sum(p.numel() for p in set(dry_run.tensors.values()) if p.requires_grad)
            # the gradient of a weight is written once a batch, not once a sample
            back = max(written.elements - elements - weights, 0)
            return OperationCount((flops, counter.get_total_flops() - flops), (elements, back))


def _flop_counter() -> FlopCounterMode:
    """Torch's counter without its hooks on modules, which are not needed here and clash with some autograd nodes."""
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    return counter


class _NoModules(contextlib.nullcontext[None]):
    """In the place of torch's ``ModuleTracker``, without its hooks: every operation counts for ``Global``."""

    parents = frozenset({"Global"})


class _Written(TorchDispatchMode):
    """Counts the elements that operations write: results that are not views of their arguments."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        returns = func._schema.returns
        values = result if len(returns) > 1 else (result,)
        for declared, value in zip(returns, values, strict=False):
            if declared.alias_info is None or declared.alias_info.is_write:
                self.elements += sum(t.numel() for t in pytree.tree_leaves(value) if isinstance(t, torch.Tensor))
        return result


def _convolution_backward(grad_shape: Any, x_shape: Any, w_shape: Any, *args: Any, **_: Any) -> int:
    """Once the forward count for each gradient asked for; torch's own formula forgets the groups (2.15)."""
    transposed, mask = args[4], args[7]
    positions = (x_shape if transposed else grad_shape)[2:]
    return int(2 * grad_shape[0] * math.prod(positions) * math.prod(w_shape) * (bool(mask[0]) + bool(mask[1])))


def _lstm(x_shape: Any, w_shape: Any, u_shape: Any, *_args: Any, **_options: Any) -> int:
    """Products of all steps with the weights of a cell, where oneDNN takes them in one call; torch has no formula."""
    return int(2 * math.prod(x_shape[:-1]) * (math.prod(w_shape) + math.prod(u_shape)))


FORMULAS = {
    torch.ops.aten.convolution_backward: _convolution_backward,
    torch.ops.aten.mkldnn_rnn_layer: _lstm,
    torch.ops.aten.mkldnn_rnn_layer_backward: lambda *args, **options: 2 * _lstm(*args, **options),
}
