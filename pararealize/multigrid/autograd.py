"""The value before the first layer -> the one behind the last, with the adjoint solve as its gradient.

One forward solve and its adjoint are one operation of autograd, so that optimisers, hooks, ``torch.autograd.grad`` and
distributed wrappers see a network like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pararealize.errors import MultigridError
from pararealize.multigrid.solver.convergence import Convergence, StepNorms
from pararealize.multigrid.solver.hierarchy import Hierarchy
from pararealize.multigrid.solver.propagators import Adjoint, Forward, TimeStep, norm, without_autocast_cache
from pararealize.multigrid.solver.settings import Settings
from pararealize.multigrid.solver.solver import Solution, solve_and_sweep
from pararealize.plan.actions import Direction

__all__ = ["KeptStates", "LayerPropagation", "States"]

States: TypeAlias = dict[Direction, list[Tensor]]  # the values at the C-points of the forward and the adjoint solve


class KeptStates(dict[Direction, list[Tensor]]):
    """The states that a network keeps from step to step.

    Attributes:
        conditions: what decides about the types and devices of the step that they are of.
    """

    conditions: Any = None


@dataclass(slots=True, kw_only=True)
class LayerPropagation:
    """One call of a network's layers: a forward solve, and its adjoint solve when autograd comes back.

    Attributes:
        rows: the layers in order.
        hierarchy: their levels.
        settings: gives the settings. The adjoint solve asks anew: they may change between forward and backward.
        states: the network's values at the C-points, by direction, that warm starts begin from, and that each solve
            with an adjoint to come replaces.
        convergence: the network's residual norms, to which those of this call are added.
        serial: layer after layer instead, with the random numbers that a solve draws, and no entry in ``convergence``.
    """

    rows: Sequence[TimeStep]
    hierarchy: Hierarchy
    settings: Callable[[], Settings]
    states: KeptStates
    convergence: Convergence
    serial: bool
    _inputs: list[Tensor] = field(default_factory=list, init=False)  # whose gradients the adjoint solve collects
    _norms: StepNorms = field(default_factory=StepNorms, init=False)
    _maps: Forward | None = field(default=None, init=False)
    _is_recording: bool = field(default=False, init=False)

    def __call__(self, u: Tensor, context: Sequence[Any]) -> Tensor:
        """The value behind the last layer, differentiable in u, in the context and in the layers' parameters.

        Args:
            u: the value before the first layer.
            context: the values of the network's contexts, nested as they come.

        Raises:
            MultigridError: within a transform, or without values; or a parameter's gradient has a hook.
        """
        if torch._C._functorch.peek_interpreter_stack() is not None or torch.compiler.is_compiling() or u.is_meta:
            raise MultigridError(
                "a solve by multigrid looks at values, and its gradient is a solve of its own: torch.func and "
                "torch.export cannot transform it, and it does not run on the meta device. Within net.serially() the "
                "network runs as it is"
            )
        leaves, shape = pytree.tree_flatten(list(context))
        tensors = {id(leaf): leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad}
        parameters = list({id(p): p for row in self.rows for p in row.parameters()}.values())
        if not torch.is_grad_enabled() or not (u.requires_grad or tensors or parameters):
            return self.solve(u.detach(), list(context), recording=False)
        for row in self.rows:
            row.check_hooks()
        # The sweeps build graphs of their own, one a layer, which end at these leaves. With the caller's context in
        # them, each would reach into the caller's graph, past the one node of autograd that stands for all layers.
        inner = {key: tensor.detach().requires_grad_() for key, tensor in tensors.items()}
        self._inputs = [*inner.values(), *parameters]
        values = pytree.tree_unflatten([inner.get(id(leaf), leaf) for leaf in leaves], shape)
        solved: Tensor = _SolveFunction.apply(self, values, u, *tensors.values(), *parameters)
        return solved

    def solve(self, u: Tensor, context: Sequence[Any], *, recording: bool) -> Tensor:
        """The forward solve; ``recording`` where the adjoint solve may follow."""
        self._is_recording = recording
        seed = int(torch.randint(1 << 62, ())) if any(row.may_draw() for row in self.rows) else 0
        self._maps = Forward(dict(enumerate(self.rows)), self.hierarchy, context, seed, recording=recording)
        if recording and self.settings().warm_start and not self.serial:
            self._forget_others(u)
        with without_autocast_cache():
            u, solution = self._pass("forward", u, self._maps)
        if not self.serial:
            self._norms.forward, self._norms.forward_size = solution.residuals, solution.size
            self.convergence.append(self._norms)
        return u

    def solve_adjoint(self, gradient: Tensor, *, keep: bool) -> tuple[Tensor, list[Tensor | None]]:
        """The gradients of what entered the first layer, and of the context and the parameters.

        Args:
            gradient: the loss's gradient with respect to the value behind the last layer.
            keep: whether the graphs stay, for another backward.
        """
        assert self._maps is not None
        adjoint = Adjoint(self._maps, self._inputs, keep=keep)
        gradient, solution = self._pass("backward", gradient, adjoint)
        self._norms.backward, self._norms.backward_size = solution.residuals, solution.size
        if not keep:
            self._maps = None  # autograd frees what it saved once it has been used, and so do we
        return gradient, [adjoint.gradients.get(id(tensor)) for tensor in self._inputs]

    def _forget_others(self, u: Tensor) -> None:
        """Drop states of other types or devices than this step's, which begins from u."""
        autocast = torch.is_autocast_enabled(u.device.type) and torch.get_autocast_dtype(u.device.type)
        types = {parameter.dtype for row in self.rows for parameter in row.parameters()}
        conditions = u.device, u.dtype, autocast, types
        if self.states.conditions not in (None, conditions):
            self.states.clear()
        self.states.conditions = conditions

    def _pass(self, direction: Direction, u: Tensor, maps: Forward | Adjoint) -> tuple[Tensor, Solution]:
        """The value at the end, and the values at the C-points."""
        settings = self.settings()
        # An evaluation neither begins from training's states, nor leaves its own to the next step.
        is_warm = settings.warm_start and self._is_recording
        points = self.states.get(direction) if is_warm else None
        if points is not None and (points[0].shape, points[0].dtype) != (u.shape, u.dtype):
            points = None  # another batch size: the states say nothing of it
        end, solution = solve_and_sweep(
            u,
            maps.hierarchy,
            maps.step,
            maps.sweep,
            serial=self.serial,
            start=None if points is None else points[1:],
            norm=norm,
            **settings.of_solve(direction),
        )
        if is_warm and not self.serial:
            self.states[direction] = [point.detach() for point in solution.points]
        return end, solution


class _SolveFunction(torch.autograd.Function):
    """The layers as one operation of autograd: gradients of parameters and contexts are those of the adjoint solve."""

    @staticmethod
    def forward(ctx: Any, layers: LayerPropagation, context: Sequence[Any], u: Tensor, *inputs: Tensor) -> Tensor:  # noqa: ARG004
        ctx.layers = layers
        ctx.save_for_backward(u)
        return layers.solve(u.detach(), context, recording=True)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        _ = ctx.saved_tensors  # a second backward without retain_graph=True is refused in torch's own words
        # Whether retain_graph=True was passed: torch.autograd.Function does not say, and torch's own compiled
        # backward (torch/_functorch/_aot_autograd/runtime_wrappers.py) asks the graph task in the same way.
        keep = bool(torch._C._autograd._get_current_graph_task_keep_graph())
        with torch.no_grad():
            entering, gradients = ctx.layers.solve_adjoint(gradient, keep=keep)
        if torch.is_grad_enabled():  # create_graph=True
            entering, *gradients = _DifferentiableOnce.apply(torch.ones((), requires_grad=True), entering, *gradients)
        return None, None, entering, *gradients


class _DifferentiableOnce(torch.autograd.Function):
    """Gradients of the adjoint solve -> the same, which refuse to be differentiated.

    They hang on the network's values and parameters in ways that no graph shows, also where the gradient that came in
    from behind hangs on nothing: an operand that requires a gradient stands for these ways.
    """

    @staticmethod
    def forward(ctx: Any, ways: Tensor, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: ARG004
        return tuple(None if gradient is None else gradient.view_as(gradient) for gradient in gradients)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:  # noqa: ARG004
        raise MultigridError(
            "the gradient of layers that are solved for by multigrid cannot be differentiated again, as a gradient "
            "penalty or a Hessian would; compute such a loss within net.serially(), or with net.exact = True"
        )
