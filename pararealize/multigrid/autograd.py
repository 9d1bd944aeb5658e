"""The value before the first layer -> the one behind the last, with the adjoint solve as its gradient.

One forward solve and its adjoint are one operation of autograd, so that optimisers, hooks, ``torch.autograd.grad`` and
distributed wrappers see a network like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils import _pytree as pytree

from pararealize.multigrid.solver.convergence import StepNorms
from pararealize.multigrid.solver.propagators import Adjoint, Forward, norm, uncached
from pararealize.multigrid.solver.solver import Solution, solve_and_sweep

if TYPE_CHECKING:
    from .module import LayerParallel

__all__ = ["through_layers"]


def through_layers(net: LayerParallel, u: Tensor, context: Sequence[Any], *, serial: bool = False) -> Tensor:
    """Solve for the value behind the last layer.

    Args:
        net: whose layers, and with what settings.
        u: the value before the first layer.
        context: the values of the network's contexts, nested as they come.
        serial: layer after layer, with the same random numbers as a solve has; no entry in the history.
    """
    leaves, shape = pytree.tree_flatten(list(context))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
    parameters = list({id(p): p for row in net.rows for p in row.parameters()}.values())
    recording = torch.is_grad_enabled() and (u.requires_grad or bool(tensors) or bool(parameters))
    step = _Step(net, recording=recording, serial=serial)
    if not recording:
        return step.forward(u.detach(), list(context))
    inner = {id(tensor): tensor.detach().requires_grad_() for tensor in tensors}
    detached = [inner.get(id(leaf), leaf) for leaf in leaves]
    step.inputs = [*(inner[id(tensor)] for tensor in tensors), *parameters]
    values = pytree.tree_unflatten(detached, shape)
    solved: Tensor = _Multigrid.apply(step, values, u, *tensors, *parameters)
    return solved


class _Step:
    """One forward solve and its adjoint."""

    def __init__(self, net: LayerParallel, *, recording: bool, serial: bool) -> None:
        self.net, self.recording, self.serial = net, recording, serial
        self.inputs: list[Tensor] = []
        self.norms = StepNorms()
        self.made: Forward | None = None

    def forward(self, u: Tensor, context: Sequence[Any]) -> Tensor:
        """The value behind the last layer."""
        net = self.net
        random = any(row.layer.random and _trains(row.f) for row in net.rows)
        seed = int(torch.randint(1 << 62, ())) if random else 0
        rows = dict(enumerate(net.rows))
        self.made = Forward(rows, net.hierarchy, context, seed, recording=self.recording)
        with uncached():
            u, found = self._pass("forward", u, self.made, net.forward_iterations)
        if not self.serial:
            self.norms.forward, self.norms.forward_size = found.residuals, found.size
            net.history.append(self.norms)
        return u

    def backward(self, gradient: Tensor, *, keep: bool) -> tuple[Tensor, list[Tensor | None]]:
        """The gradients of what entered the first layer, and of ``inputs``."""
        assert self.made is not None
        adjoint = Adjoint(self.made, self.inputs, keep=keep)
        gradient, found = self._pass("backward", gradient, adjoint, self.net.backward_iterations)
        self.norms.backward, self.norms.backward_size = found.residuals, found.size
        return gradient, [adjoint.gradients.get(id(tensor)) for tensor in self.inputs]

    def _pass(self, way: str, u: Tensor, maps: Forward | Adjoint, iterations: int) -> tuple[Tensor, Solution]:
        """The value at the end, and what is known of the solve."""
        net = self.net
        start = net.states.get(way) if net.warm_start else None
        if start is not None and (start[0].shape, start[0].dtype) != (u.shape, u.dtype):
            start = None
        end, found = solve_and_sweep(
            u,
            maps.hierarchy,
            maps.step,
            maps.sweep,
            serial=self.serial,
            iterations=iterations,
            relaxation=net.relaxation,
            cycle=net.cycle,
            start=None if start is None else start[1:],
            tolerance=net.tolerance,
            norm=norm,
        )
        if net.warm_start and not self.serial:
            net.states[way] = [point.detach() for point in found.points]
        return end, found


class _Multigrid(torch.autograd.Function):
    """The layers as one operation of autograd: gradients of parameters and contexts are those of the adjoint solve."""

    @staticmethod
    def forward(ctx: Any, step: _Step, context: Sequence[Any], u: Tensor, *inputs: Tensor) -> Tensor:  # noqa: ARG004
        ctx.step = step
        ctx.save_for_backward(u)
        return step.forward(u.detach(), context)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        _ = ctx.saved_tensors  # a second backward without retain_graph=True is refused in torch's own words
        keep = bool(torch._C._autograd._get_current_graph_task_keep_graph())
        step: _Step = ctx.step
        leaving, found = step.backward(gradient, keep=keep)
        if not keep:
            step.made = None
        return None, None, leaving, *found


def _trains(module: nn.Module) -> bool:
    return any(part.training for part in module.modules())
