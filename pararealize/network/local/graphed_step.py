"""A network, a loss, one batch -> GraphedStep: forward, loss and backward of a training step as one CUDA graph.

    call   batch, target ──copy──> static inputs ─ one graph ──> static loss, output, and .grad of every parameter

A pair of graphs for forward and backward leaves autograd between them: for each parameter an input of a Python
function, a gradient handed over and an accumulation. For the 3,005 parameters of ResNet-1001 that is 11 to 15 ms by an
estimate, which may be more than the GPU needs for the step. Here ``.grad`` is where the graph writes, and a replay
touches no parameter.

Segments are branches of the graph, as streams were forked and joined when it was captured; a window begins where the
branches of the one before are joined.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pararealize.argument_types import typed_arguments
from pararealize.errors import CaptureError, DeviceError
from pararealize.tracing.containers import leaves_of, map_leaves, tensors_of

from .cuda_graph import apart
from .graphed_call import Call, GraphedCall, arguments_of_example, runnable
from .graphed_network import stand_ins
from .static_gradients import StaticGradients
from .streams import lend

__all__ = ["GraphedStep", "capture_step"]

_NO_TARGET = object()


@typed_arguments(DeviceError)
def capture_step(
    net: nn.Module,
    loss_fn: Callable[..., Tensor],
    example_inputs: Any,
    target: Any = _NO_TARGET,
    *,
    streams: bool = True,
) -> GraphedStep:
    """Capture a training step on one GPU, forward, loss and backward, as one CUDA graph.

    The step is that of the network's mode, of the current state of autocast, and of batches of this size. Batch norms
    move their statistics, and dropout draws anew, in every replay. The capture leaves parameters, buffers, gradients
    and random states as found.

    Args:
        net: on one GPU; a converted network, what :func:`run_local` returns (with its stacks), or any other module.
        loss_fn: ``(output, target) -> one number``, such as a mean over the batch; ``(output) -> one number`` where
            there is no target. What it does besides computing happens once, in the capture.
        example_inputs: a batch of the size to capture: a tensor, a tuple of positional or a dict of keyword arguments.
        target: what the loss compares with; tensors in any nest.
        streams: run the segments of a converted network as parallel branches of the graph.

    Returns:
        A function that is called with a batch and its target, and leaves gradients in ``net.parameters()``.

    Raises:
        DeviceError: the network is not on one GPU.
        CaptureError: something in the network or the loss needs Python or values while it runs: hooks, sizes or
            branches that depend on values, random numbers of the host; or there is nothing to differentiate.
        ExampleError: the network does not accept the example.

    Example:
        >>> import torch
        >>> from torch.nn.functional import cross_entropy
        >>> from pararealize import capture_step, pararealize
        >>> from pararealize.models import resnet20
        >>> net = pararealize(resnet20(), n=3)
        >>> images, labels = torch.randn(2, 3, 32, 32), torch.tensor([1, 2])
        >>> step = capture_step(net, cross_entropy, images, labels)
        Traceback (most recent call last):
            ...
        pararealize.errors.DeviceError: CUDA graphs need a network on GPUs, and this one is on cpu...
        >>> # loss = step(images, target=labels); optimizer.step()
    """
    call = arguments_of_example(example_inputs)
    module, branches = runnable(net, call, streams=streams)
    return GraphedStep(module, branches, loss_fn, call, target)


class GraphedStep(GraphedCall):
    """A training step as one CUDA graph; made by :func:`capture_step`.

    A call overwrites the gradients: no ``zero_grad`` is needed between steps, and ``.grad`` is the graph's memory.
    ``accumulate=True`` adds to them; the first such call captures a second graph. Where gradients were set to ``None``
    in between, the call puts them back, which takes Python for each parameter: leave ``zero_grad()`` out. Do not set
    those of some parameters alone to ``None``: a call looks at a fixed number of them.

    A call that does not fit, of another size, type, mode or state of autocast, runs eagerly with the same result.

    Attributes:
        output: the network's output in the last replay, without a graph; the next one overwrites it.
        was_replayed: whether the last call was a replay, not an eager step.
        name: of the network.
        device: of the network.
    """

    def __init__(
        self,
        module: nn.Module,
        branches: Sequence[torch.cuda.Stream],
        loss_fn: Callable[..., Tensor],
        call: Call,
        target: Any = _NO_TARGET,
    ) -> None:
        self._loss_fn, self._has_target = loss_fn, target is not _NO_TARGET
        super().__init__(module, branches, (call, target if self._has_target else None))
        _check_hooks_of_parameters(self.root, self.name)
        parameters = [parameter for parameter in self.root.parameters() if parameter.requires_grad]
        if not parameters:
            raise CaptureError(
                f"no parameter of {self.name} can be differentiated; call requires_grad_(), or capture its inference"
            )
        self._seed = torch.ones((), device=self.device)
        self._one = torch.ones((), device=self.device)
        lend(self._seed, self.stream)
        self._is_scaled = False
        self.was_replayed = False
        with self.capturing():
            self.warm_up(self._differentiated)
            self._graph, (loss, output, gradients) = self.capture(self._differentiated_apart)
        self._loss: Tensor = loss
        self._output = self.output = output
        self._gradients = StaticGradients([(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None])
        self._unused = [p for p, g in zip(parameters, gradients, strict=True) if g is None]
        self._adding: torch.cuda.CUDAGraph | None = None
        if not self._gradients.pairs:
            raise CaptureError(f"the loss depends on no parameter of {self.name}")

    def __call__(
        self,
        *args: Any,
        target: Any = _NO_TARGET,
        accumulate: bool = False,
        scaler: torch.amp.GradScaler | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Forward, loss and backward of a batch: gradients stand in the parameters' ``grad``.

        Args:
            *args: the network's inputs.
            target: what the loss compares with, where the capture had one.
            accumulate: add to the gradients that are there.
            scaler: scales the loss before it is differentiated.
            **kwargs: the network's inputs by name.

        Returns:
            The loss, detached and not scaled.

        Raises:
            ModelError: parameters or buffers have been moved, replaced or frozen since the capture.
            CaptureError: a target is missing, or there is one too many.
        """
        if (target is not _NO_TARGET) != self._has_target:
            how = "with" if self._has_target else "without"
            raise CaptureError(f"the step of {self.name} was captured {how} a target; call it so, or capture it again")
        leaves = self.leaves_of(((args, kwargs), target if self._has_target else None))
        self.was_replayed = leaves is not None
        if leaves is None:
            return self._eagerly((args, kwargs), target, accumulate=accumulate, scaler=scaler)
        self._scale(scaler)
        self.fill(leaves)
        if accumulate:
            if self._adding is None:
                self._adding = self._capture_adding()
            self._gradients.attach(keep=True)
            self._adding.replay()
        else:
            self._graph.replay()
            if self._gradients.attach(keep=False):
                for parameter in self._unused:
                    parameter.grad = None
        self.output = self._output
        self.stamp.look()  # in the time that the GPU takes; it touches the old memory alone
        return self._loss.clone()

    def release(self) -> None:
        """Give the graphs' memory back; gradients are copied, and calls run eagerly afterwards."""
        super().release()
        self._gradients.release()
        self._unused = []

    # The graphs -------------------------------------------------------------------------------------------------------

    def _differentiated(self) -> tuple[Tensor, Any, list[Tensor | None]]:
        """Loss, output and the gradients of all parameters, on the capturing stream and its branches."""
        with stand_ins(self.root, self.name) as pairs, torch.enable_grad():
            (args, kwargs), target = self.inputs()
            output = self.module(*args, **kwargs)
            loss = self._loss_fn(output, target) if self._has_target else self._loss_fn(output)
            _check_loss(loss, self.name)
            # autograd works on the streams of the forward, which take part in a capture from when they wait for it
            for branch in self.branches:
                branch.wait_stream(self.stream)
            with torch.autocast(self.device.type, enabled=False):
                seed = self._seed.to(loss.dtype).expand_as(loss)
                gradients = torch.autograd.grad(loss, [stand for _, stand in pairs], seed, allow_unused=True)
            for branch in self.branches:
                self.stream.wait_stream(branch)
        by_parameter: dict[int, Tensor | None] = {
            id(parameter): gradient for (parameter, _), gradient in zip(pairs, gradients, strict=True)
        }
        ordered = [by_parameter[id(p)] for p in self.root.parameters() if p.requires_grad]
        return loss.detach(), map_leaves(_detached, output), ordered

    def _differentiated_apart(self) -> tuple[Tensor, Any, list[Tensor | None]]:
        """The same, with each gradient in memory of its own."""
        loss, output, gradients = self._differentiated()
        return loss, output, apart(gradients, [*self.tensors, self._seed, loss, *tensors_of(output)])

    def _capture_adding(self) -> torch.cuda.CUDAGraph:
        """A second graph, which adds to the gradients and leaves loss and output where the first one does."""
        used = {id(parameter) for parameter, _ in self._gradients.pairs}
        flags = [id(p) in used for p in self.root.parameters() if p.requires_grad]

        def run() -> None:
            loss, output, gradients = self._differentiated()
            new = [
                gradient for gradient, is_used in zip(gradients, flags, strict=True) if is_used and gradient is not None
            ]
            self._gradients.add(new)
            self._loss.copy_(loss)
            for static, leaf in zip(leaves_of(self._output), leaves_of(output), strict=True):
                if isinstance(static, Tensor):
                    static.copy_(leaf)

        kept = [static.clone() for _, static in self._gradients.pairs]  # a double of CUDA computes while it captures
        with self.capturing():
            graph, _ = self.capture(run)
        torch._foreach_copy_([static for _, static in self._gradients.pairs], kept)
        return graph

    # Gradients --------------------------------------------------------------------------------------------------------

    def _scale(self, scaler: torch.amp.GradScaler | None) -> None:
        """What backward begins with: 1, or the scale of the scaler, which stays on the device."""
        if scaler is not None and scaler.is_enabled():
            self._seed.copy_(scaler.scale(self._one))
            self._is_scaled = True
        elif self._is_scaled:
            self._seed.fill_(1.0)
            self._is_scaled = False

    def _eagerly(self, call: Call, target: Any, *, accumulate: bool, scaler: torch.amp.GradScaler | None) -> Tensor:
        """The same step without a graph."""
        args, kwargs = call
        if not accumulate:
            for parameter in self.root.parameters():
                parameter.grad = None
        with torch.enable_grad():
            output = self.module(*args, **kwargs)
            loss = self._loss_fn(output, target) if self._has_target else self._loss_fn(output)
            with torch.autocast(self.device.type, enabled=False):
                torch.autograd.backward(loss if scaler is None else scaler.scale(loss))
        self.output = map_leaves(_detached, output)
        return loss.detach()


def _detached(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


# ---------------------------------------------------------------------------------------------------------- bad input


def _check_hooks_of_parameters(root: nn.Module, name: str) -> None:
    hooked = [
        key
        for key, p in root.named_parameters()
        if p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None)
    ]
    if hooked:
        raise CaptureError(
            f"parameters of {name} have hooks, which a step in one graph would not run: {', '.join(hooked[:3])}; "
            "remove them, or use capture_graphs, which leaves them outside of its graphs"
        )


def _check_loss(loss: Any, name: str) -> None:
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        what += "" if getattr(loss, "requires_grad", True) else " without a graph"
        raise CaptureError(
            f"loss_fn gave {what} for {name}; it has to return one number that depends on the output, such as a mean"
        )
