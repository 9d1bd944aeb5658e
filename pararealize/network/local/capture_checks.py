"""A network, inputs -> nothing, or a CaptureError that says what in the network no CUDA graph can hold.

A captured graph replays kernels and runs no Python: hooks, branches that depend on values, and random numbers of Python
and NumPy would stay what they were in the capture, https://docs.pytorch.org/docs/stable/notes/cuda.html#constraints.
They are looked for on fake tensors, before anything is captured.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils import _pytree as pytree

from pararealize.analysis.dry_run import DryRun
from pararealize.errors import CaptureError, ExampleError
from pararealize.network.module import PararealModule
from pararealize.network.variant import Variant
from pararealize.random_state import host_state, preserve_host_state
from pararealize.tracing.module_copy import share_contents
from pararealize.tracing.network_piece import contents_of

from .streams import Runner

__all__ = ["check_hooks", "check_static", "example_error", "host_fault"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def check_hooks(net: PararealModule) -> None:
    """Refuse hooks of modules: they are Python, of which a graph would keep what they did once.

    Raises:
        CaptureError: there are some; says where.
    """
    names = {"context"} & net.part_graphs.keys()
    roots = (net, net.stem, net.head, *net.segments.values(), *(net.get_submodule(name) for name in names))
    named = {id(m): (name or type(m).__name__, m) for root in roots for name, m in contents_of(root).named_modules()}
    hooked = [name for name, module in named.values() if any(getattr(module, kind) for kind in _HOOKS)]
    if hooked:
        more = f" and {len(hooked) - 3} more" if len(hooked) > 3 else ""
        raise CaptureError(
            f"{net.plan.model} has hooks, which would not run in a CUDA graph: on {', '.join(hooked[:3])}{more}; "
            "remove them, or put them on parameters, where they do run"
        )


def check_static(net: PararealModule, runner: Runner, inputs: Sequence[Any]) -> None:
    """Run the network on fake tensors, which have no values: what asks for one cannot be captured.

    Raises:
        CaptureError: something does, or draws random numbers from Python or NumPy.
        ExampleError: the network does not accept the inputs.
    """
    try:
        fault = host_fault(_PartsInOrder(runner.net), inputs)
    except (RuntimeError, TypeError, ValueError) as error:
        raise example_error(net, error) from error
    if fault:
        raise CaptureError(
            f"{net.plan.model} {fault}; run it with run_local alone, or take out what depends on values, and draw "
            "random numbers with torch"
        )


def host_fault(module: nn.Module, inputs: Sequence[Any]) -> str:
    """What a module needs the host for while it runs, in words; empty where nothing is found.

    Args:
        module: a copy of it is run on fake tensors in the place of its parameters and buffers.
        inputs: its arguments, nested or not; fake tensors take their place as well.
    """

    def fake(tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=tensor.device)

    before = host_state()
    with preserve_host_state(), FakeTensorMode(allow_non_fake_inputs=True):
        try:
            DryRun(module, pytree.tree_map_only(Tensor, fake, list(inputs)), fake).forward()
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            return f"asks the GPU for values while it runs ({error}), which a CUDA graph cannot"
        if host_state() != before:
            return "draws random numbers from Python or NumPy, of which a CUDA graph would keep the first ones"
    return ""


class _PartsInOrder(nn.Module):
    """A network's parts under its own names, run one after the other."""

    def __init__(self, net: PararealModule | Variant) -> None:
        super().__init__()
        share_contents(self, net)
        self.__dict__.update(net=net, run=Runner(net, net.graph).run)

    def forward(self, *inputs: Any) -> Any:
        return self.__dict__["run"](*inputs)

    def __deepcopy__(self, memo: dict[int, Any]) -> _PartsInOrder:
        return _PartsInOrder(copy.deepcopy(self.__dict__["net"], memo))


def example_error(net: PararealModule, error: Exception) -> ExampleError:
    """What to raise for example inputs with which the network does not run."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return ExampleError(f"{net.plan.model} does not accept the example inputs: {reason}; pass a batch that it runs on")
