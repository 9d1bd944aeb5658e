"""A function of tensors, example tensors -> GraphedFunction: its forward and its backward as one CUDA graph each.

A CUDA graph is a list of kernels with fixed addresses, which the GPU runs without Python. So a captured function keeps
its inputs, outputs and gradients in memory of its own, and holds one step at a time:

    call      inputs ──copy──> static inputs ─ forward graph ──> static outputs
    backward  gradients ──copy──> static seeds ─ backward graph ──> static gradients ──> parameters' .grad

It is ``torch.cuda.make_graphed_callables`` with what that leaves to its callers: the streams of parallel branches, a
second backward and a forward in between are refused rather than wrong, and gradients may be accumulated.
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pararealize.errors import CaptureError
from pararealize.tracing.containers import leaves_of, map_leaves

from .static_gradients import StaticGradients
from .streams import lend

__all__ = ["ERRORS", "WARM_UP", "GraphedFunction", "apart"]

ERRORS: Literal["thread_local"] = "thread_local"
"""Which threads' calls break a capture: by default any thread's, such as one that pins the memory of the next batch."""

WARM_UP = 3  # runs before a capture: lazy initialisation and the choice of algorithms must not be captured


@dataclasses.dataclass(frozen=True, slots=True)
class _Work:
    """What is captured: a function of static inputs, and the gradients with respect to sources, on some streams."""

    function: Callable[..., Any]
    inputs: Sequence[Tensor]
    sources: Sequence[Tensor]
    stream: torch.cuda.Stream
    branches: Sequence[torch.cuda.Stream]

    def run(self) -> Any:
        """What the function gives."""
        # of copies: a leaf that requires a gradient may not be worked on in place, nor may a graph be empty
        return self.function(*(value.clone() for value in self.inputs))

    def gradients(self, outputs: Sequence[Tensor], seeds: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """Those of the sources.

        Autograd works on the streams of the forward. Those take part in a capture from the moment that they wait for
        the capturing stream, and it has to wait for all of them before the capture ends.
        """
        for branch in self.branches:
            branch.wait_stream(self.stream)
        # autocast was on in the forward alone, as torch.amp asks
        with torch.autocast(self.stream.device.type, enabled=False):
            results = torch.autograd.grad(outputs, self.sources, seeds, allow_unused=True)
        for branch in self.branches:
            self.stream.wait_stream(branch)
        return results

    def warm_up(self) -> Sequence[Tensor | None]:
        """Run some times on the capturing stream, for which libraries make their workspaces; the last gradients."""
        found: Sequence[Tensor | None] = ()
        with torch.cuda.stream(self.stream):
            for _ in range(WARM_UP):
                outputs = _differentiable([*leaves_of(self.run())])
                if outputs and self.sources:
                    found = self.gradients(outputs, [torch.ones_like(output) for output in outputs])
                del outputs  # and with it autograd's graph, before the next one is built
        return found


class GraphedFunction:
    """One function as a pair of CUDA graphs, called with tensors like those of the example.

    Args:
        function: takes tensors; what it returns may be nested. Its forward must not ask the GPU for values.
        example: its inputs; those that require a gradient get one.
        parameters: what else it differentiates with respect to: pairs of a parameter and its stand-in, a tensor over
            the same memory that the function uses in its place during the capture.
        stream: the stream to capture on.
        branches: other streams that the function forks to and joins.
        backward: whether to capture the backward pass as well.
        gradient_of: gives the memory of a parameter's gradient, which the backward graph adds to. Without it, autograd
            is given the gradients, which takes Python for each parameter.

    It is to be called on the stream that is current where it is made. Buffers and random state move on during the
    warm-up: it is the caller's to put them back.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        example: Sequence[Tensor],
        parameters: Sequence[tuple[nn.Parameter, Tensor]],
        *,
        stream: torch.cuda.Stream,
        branches: Sequence[torch.cuda.Stream] = (),
        backward: bool = True,
        gradient_of: Callable[[nn.Parameter], Tensor] | None = None,
    ) -> None:
        self.inputs = [value.detach().clone().requires_grad_(backward and value.requires_grad) for value in example]
        trained = [parameter for parameter, _ in parameters] if backward else []
        self.parameters = [] if gradient_of is not None else trained
        self.step = 0  # counts the replays; tells to which of them the contents of the static memory belong
        self.device = stream.device
        self.forward_graph = torch.cuda.CUDAGraph()
        self.backward_graph: torch.cuda.CUDAGraph | None = None
        surface = [*self.inputs, *(stand_in for _, stand_in in parameters[: len(trained)])]
        sources = [tensor for tensor in surface if tensor.requires_grad]
        work = _Work(function, self.inputs, sources, stream, branches)
        pool = torch.cuda.graph_pool_handle()  # one for both graphs: backward reads what forward saved in it
        for value in self.inputs:  # allocated on the current stream, read on the capturing one
            lend(value, stream)
        with torch.cuda.device(stream.device), torch.set_grad_enabled(backward):
            torch.cuda.synchronize()
            found = work.warm_up()
            self.static = StaticGradients(() if gradient_of is None else _memory_of(trained, found, gradient_of))
            del found
            for _, static in self.static.pairs:
                lend(static, stream)
            torch.cuda.synchronize()
            with torch.cuda.graph(self.forward_graph, pool=pool, stream=stream, capture_error_mode=ERRORS):
                result = work.run()
            leaves = [*leaves_of(result)]
            _check_leaves(leaves)
            outputs = _differentiable(leaves)
            self.seeds = [torch.zeros_like(output) for output in outputs]
            static_gradients: Sequence[Tensor | None] = ()
            if outputs and sources:
                self.backward_graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self.backward_graph, pool=pool, stream=stream, capture_error_mode=ERRORS):
                    static_gradients = work.gradients(outputs, self.seeds)
                    if gradient_of is not None:
                        count = len(sources) - len(trained)
                        self.static.add([gradient for gradient in static_gradients[count:] if gradient is not None])
                        static_gradients = static_gradients[:count]
                    static_gradients = apart(static_gradients, [*self.seeds, *self.inputs, *outputs])
        by_tensor = dict(zip(map(id, sources), static_gradients, strict=False))
        self.differentiable = [bool(leaf.requires_grad and sources) for leaf in leaves if isinstance(leaf, Tensor)]
        self.result = map_leaves(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, result)
        self.outputs = [*leaves_of(self.result)]
        count = len(self.inputs) + len(self.parameters)
        self.gradients = [by_tensor.get(id(tensor)) for tensor in surface[:count]]
        # where autograd is given no parameters, something else has to tell it that there is a backward
        self.anchor = torch.zeros((), device=self.device, requires_grad=bool(self.static.pairs))

    def __call__(self, *values: Tensor) -> Any:
        """Replay; the outputs lie in static memory, which the next call overwrites."""
        tensors = iter(_Replay.apply(self, self.anchor, *values, *self.parameters))
        return map_leaves(lambda leaf: next(tensors) if isinstance(leaf, Tensor) else leaf, self.result)

    def release(self) -> None:
        """Give the graphs' memory back; the object is of no use afterwards."""
        torch.cuda.synchronize(self.device)
        for graph in (self.forward_graph, self.backward_graph):
            if graph is not None:
                graph.reset()
        self.step += 1
        self.static.release()
        self.inputs, self.outputs, self.seeds, self.gradients = [], [], [], []

    def replay_forward(self, values: Sequence[Tensor]) -> int:
        """Fill the static outputs; returns the number of the step they belong to."""
        for static, value in zip(self.inputs, values, strict=True):
            static.copy_(value, non_blocking=True)
        self.forward_graph.replay()
        self.step += 1
        return self.step

    def replay_backward(self, step: int, seeds: Sequence[Tensor]) -> None:
        """Fill the static gradients, if the static memory still holds what that step's forward left there."""
        if step != self.step:
            raise CaptureError(
                "backward through a captured network whose memory another forward or backward has used since: it holds "
                "one step at a time; call backward once after each forward, or release() the network and run it eagerly"
            )
        self.step += 1
        self._part_from_gradients()
        self.static.attach(keep=True)
        for static, seed in zip(self.seeds, seeds, strict=True):
            static.copy_(seed)
        assert self.backward_graph is not None
        self.backward_graph.replay()

    def _part_from_gradients(self) -> None:
        """Where a parameter's ``.grad`` is the graph's static memory, let it be a copy from now on.

        Autograd keeps the first gradient that it gets as ``.grad`` without copying it, if it can
        (torch/csrc/autograd/functions/accumulate_grad.h), and the coming replay would overwrite it. ``.grad`` is still
        there when gradients are accumulated, or set to zero in place rather than to ``None``.
        """
        parted: list[tuple[Tensor, Tensor]] = []
        for parameter, static in zip(self.parameters, self.gradients[len(self.inputs) :], strict=True):
            gradient = parameter.grad
            if static is not None and gradient is not None and gradient.data_ptr() == static.data_ptr():
                parameter.grad = torch.empty_like(gradient)
                parted.append((parameter.grad, gradient))
        if parted:  # in a few kernels
            torch._foreach_copy_([copy for copy, _ in parted], [gradient for _, gradient in parted])


class _Replay(torch.autograd.Function):
    """The two graphs as one node of autograd's graph."""

    @staticmethod
    def forward(ctx: Any, graphed: GraphedFunction, _: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.graphed, ctx.step = graphed, graphed.replay_forward(tensors[: len(graphed.inputs)])
        outputs = [leaf.detach() for leaf in graphed.outputs if isinstance(leaf, Tensor)]
        ctx.mark_non_differentiable(*itertools.compress(outputs, map(operator.not_, graphed.differentiable)))
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        graphed: GraphedFunction = ctx.graphed
        graphed.replay_backward(ctx.step, list(itertools.compress(gradients, graphed.differentiable)))
        count = len(graphed.inputs)
        # Gradients of inputs go on into the caller's graph, beyond the next replay. Those of parameters need no copy:
        # the next replay_backward makes one of each that has become a .grad.
        of_inputs = (None if static is None else static.clone() for static in graphed.gradients[:count])
        return (
            None,
            None,
            *of_inputs,
            *(None if static is None else static.detach() for static in graphed.gradients[count:]),
        )


def _check_leaves(leaves: Sequence[Any]) -> None:
    kinds = {type(leaf).__name__ for leaf in leaves if not isinstance(leaf, Tensor | int | float | str | None)}
    if kinds:
        raise CaptureError(
            f"a captured function returns a {', '.join(sorted(kinds))}, in which tensors cannot be found; return "
            "tensors in tuples, lists and dicts"
        )


def apart(gradients: Sequence[Tensor | None], others: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradients, each in memory of its own: autograd's may be one another, a seed, an input or an output."""
    addresses = {tensor.data_ptr() for tensor in others}
    apart: list[Tensor | None] = []
    for gradient in gradients:
        if gradient is not None:
            if gradient.data_ptr() in addresses:
                gradient = gradient.clone()
            addresses.add(gradient.data_ptr())
        apart.append(gradient)
    return apart


def _memory_of(
    parameters: Sequence[nn.Parameter],
    gradients: Sequence[Tensor | None],
    gradient_of: Callable[[nn.Parameter], Tensor],
) -> list[tuple[nn.Parameter, Tensor]]:
    """The parameters that a backward reaches, with memory for their gradients, which come last among all."""
    last = gradients[len(gradients) - len(parameters) :]
    return [(p, gradient_of(p)) for p, gradient in zip(parameters, last, strict=False) if gradient is not None]


def _differentiable(leaves: Sequence[Any]) -> list[Tensor]:
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
