"""A rank's stage -> GraphedStage: its steps with every part as CUDA graphs, between the messages.

    the first step of a size    runs eagerly, and shows with which arguments each part is called
    behind it                   when no message is under way, each part is captured: its forward as one graph, its
                                backward as another, which adds to the gradients of its parameters
    every further step          receive ── graph of C^j ── graph of g^j ── graph of F^{j-1} ── send, and back likewise

Messages, sums over ranks, and the few operations between two parts (``y + F(z - x)``) stay outside of graphs, where
:mod:`pararealize.distributed.step` has them: a graph would hold the order of messages of one capture, and NCCL's
time-outs and the watch look at works that are issued one by one. What replays ask of the host grows with the parts of
the rank, three for each segment, and not with their parameters.

Nothing is captured within a step: ``torch.cuda.graph`` waits for the whole device, which may wait for a receive that
was posted ahead, which waits for a rank that waits for this one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from pararealize.argument_types import typed_arguments
from pararealize.distributed.gradients import is_of_averages
from pararealize.distributed.rank_segments import call_part
from pararealize.distributed.serving import Server
from pararealize.distributed.stage import Stage
from pararealize.distributed.step import SegmentStep
from pararealize.errors import CaptureError, DeviceError, ModelError
from pararealize.plan.parts import Part
from pararealize.tracing.containers import copied, leaves_of, map_leaves, nesting_of, tensors_of
from pararealize.tracing.hooks import describe_hook, hook_of
from pararealize.tracing.network_piece import contents_of

from .capture_checks import host_fault
from .cuda_graph import GraphedFunction
from .graphed_network import autocast_without_cache, detached_copy, leaf_key, preserve_network_state, stand_ins
from .module import check_gpus
from .static_gradients import StaticGradients
from .streams import lend
from .tensor_stamp import TensorStamp

__all__ = ["GraphedStage", "capture_stage"]

_NO_TARGET = object()
_REMEDY = "distribute it over a mesh of 'cuda' devices where there are some, or call the stage itself"


@typed_arguments(DeviceError, "stage")
def capture_stage(stage: Stage, *, sizes: int = 8) -> GraphedStage:
    """Run a rank's parts of a distributed network as CUDA graphs: of each one for the forward, one for the backward.

    It is no collective call, and ranks need not do the same: what passes between them is as it was. The first step of
    each size, mode and state of autocast runs eagerly and is captured behind its end; from the second on it is
    replayed. What cannot be captured goes on eagerly, with its reason in :attr:`GraphedStage.eager`.

    Args:
        stage: on a GPU, of :meth:`PararealModule.distribute`.
        sizes: how many kinds of calls (size, mode, state of autocast) are captured at most, since each keeps the memory
            of one; those that come later run eagerly.

    Returns:
        What is called in the place of the stage: ``graphed.step(...)`` and ``graphed(...)``.

    Raises:
        ModelError: ``stage`` is no stage of a parareal network.
        DeviceError: it computes on no GPU.
        CaptureError: ``sizes`` is no positive number.

    Example:
        >>> import torch
        >>> import torch.distributed as dist
        >>> from torch.distributed.device_mesh import init_device_mesh
        >>> from pararealize import capture_stage, pararealize
        >>> from pararealize.models import resnet20
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> stage = pararealize(resnet20(), n=3).distribute(init_device_mesh("cpu", (1,)))
        >>> capture_stage(stage)
        Traceback (most recent call last):
            ...
        pararealize.errors.DeviceError: CUDA graphs need a network on GPUs, and this one is on cpu...
        >>> # graphed = capture_stage(stage); loss = graphed.step(images, target=labels, loss_fn=cross_entropy)
        >>> dist.destroy_process_group()
    """
    program = getattr(stage, "_program", None)
    if not isinstance(stage, Stage) or not isinstance(program, SegmentStep):
        raise ModelError(
            f"{type(stage).__name__} is no stage of a parareal network; pass what pararealize(model, n).distribute() "
            "returns, and a network of one process to capture_step"
        )
    if sizes < 1:
        raise CaptureError(f"sizes is {sizes}; pass how many kinds of calls may be captured, 1 or more")
    check_gpus([stage.device], _REMEDY)
    return GraphedStage(stage, program, sizes)


class GraphedStage:
    """A stage whose parts are replayed as CUDA graphs; made by :func:`capture_stage`.

    Gradients are added to those that are there, as by the stage itself. They stand in the graphs' memory: between
    steps, :meth:`zero_grad` sets them to zero at once, and ``None`` in their place takes Python for each parameter. Do
    not set those of some parameters alone to ``None``: a call looks at a fixed number of them.

    Attributes:
        stage: what it runs.
        eager: parts that run eagerly, by name, each with the reason.
        replays: how many calls were replayed, so far.
    """

    def __init__(self, stage: Stage, program: SegmentStep, sizes: int) -> None:
        self.stage, self._sizes = stage, sizes
        self.eager: dict[str, str] = {}
        self.replays = 0
        self._segments = program.segments
        self._tree = stage.rank_setup.modules.tree
        self._name = stage.rank_setup.description
        self._captures: dict[Any, _CapturedParts] = {}
        self._memory: dict[nn.Parameter, Tensor] = {}
        self._gradients = StaticGradients(())
        self._others = list(self._tree.parameters())  # whose gradients no graph writes
        self._stream = torch.cuda.Stream(device=stage.device)

    def step(
        self,
        *args: Any,
        target: Any = _NO_TARGET,
        loss_fn: Callable[..., Tensor],
        scaler: torch.amp.GradScaler | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Forward and backward over all ranks: see :meth:`Stage.step`, which has the same arguments and errors.

        Raises:
            ModelError: parameters or buffers have been moved, replaced or frozen since the capture. No message was
                sent.
        """
        targets = {} if target is _NO_TARGET else {"target": target}
        with self._replayed("step", args, kwargs):
            return self.stage.step(*args, **targets, loss_fn=loss_fn, scaler=scaler, **kwargs)

    def __call__(self, *args: Any, everywhere: bool = False, **kwargs: Any) -> Any:
        """The network's output, without a graph of autograd: see :meth:`Stage.forward`."""
        with self._replayed("inference", args, kwargs):
            return self.stage(*args, everywhere=everywhere, **kwargs)

    def serve(self) -> contextlib.AbstractContextManager[Server | None]:
        """Take requests on the first rank, and answer them by replays: see :meth:`Stage.serve`.

        The first request of each size is answered eagerly; so are all of a size beyond the number of sizes.
        """
        return self.stage.serve(forward=self)

    def zero_grad(self) -> None:
        """Set gradients to zero where graphs add to them, and to ``None`` elsewhere; few calls, whatever the size."""
        self._gradients.attach(keep=False)
        if self._gradients.pairs:
            torch._foreach_zero_([static for _, static in self._gradients.pairs])
        for parameter in self._others:
            parameter.grad = None

    def release(self) -> None:
        """Give the graphs' memory back; gradients are copied, and steps of every size begin anew with an eager one."""
        for capture in self._captures.values():
            for graphed in capture.parts.values():
                graphed.function.release()
        self._gradients.release()
        self._captures, self._memory, self.eager = {}, {}, {}
        self._others = list(self._tree.parameters())

    def __repr__(self) -> str:
        parts = sorted({name for capture in self._captures.values() for name in capture.parts})
        lines = [f"{self._name}: {', '.join(parts) or 'no part yet'} as CUDA graphs"]
        return "\n".join([*lines, *(f"{name} runs eagerly: {reason}" for name, reason in self.eager.items())])

    # Captures ---------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _replayed(self, call: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[None]:
        """Around a call of the stage: its parts are replayed, or captured when it has ended well."""
        key = self._key(call, args, kwargs)
        capture = self._captures.get(key)
        if capture is not None:
            capture.stamp.look()  # before the other ranks hear of the call
        elif len(self._captures) == self._sizes:
            yield
            return
        recorder = _PartArguments()
        self._segments.caller = recorder if capture is None else capture.call
        try:
            yield
        finally:
            self._segments.caller = call_part
        if capture is None:
            self._captures[key] = self._capture(recorder, backward=call == "step")
        else:
            self.replays += 1

    def _key(self, call: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What has to be equal for a capture to fit: call, mode, autocast, and the inputs but for their values."""
        values = args, dict(kwargs)
        kind = self.stage.device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        return call, self.stage.training, autocast, nesting_of(values), tuple(map(leaf_key, leaves_of(values)))

    def _capture(self, recorder: _PartArguments, *, backward: bool) -> _CapturedParts:
        """Capture the parts that were called, each with the arguments that it had."""
        parts: dict[str, _GraphedPart] = {}
        # before the stand-ins, which have no hooks
        faults = {part.name: _fault(function, arguments) for part, function, arguments in recorder.calls}
        for buffer in self._tree.buffers():  # of the current stream, moved on by warm-ups on the capturing one
            lend(buffer, self._stream)
        kept = [(static, static.clone()) for static in self._memory.values()]  # a double of CUDA computes in a capture
        with (
            preserve_network_state(self._tree, [self.stage.device]),
            autocast_without_cache(self.stage.device.type),
            torch.inference_mode(False),
            stand_ins(self._tree, self._name) as pairs,
        ):
            for part, function, arguments in recorder.calls:
                reason = faults[part.name]
                if not reason and not isinstance(function, nn.Identity):
                    try:
                        parts[part.name] = self._captured(part, function, arguments, pairs, backward=backward)
                    except (CaptureError, RuntimeError) as error:
                        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                if reason:
                    self.eager[part.name] = reason
        with torch.no_grad():
            for static, value in kept:
                static.copy_(value)
        self._gradients = StaticGradients([*self._memory.items()])
        self._others = [parameter for parameter in self._tree.parameters() if parameter not in self._memory]
        return _CapturedParts(parts, TensorStamp(self._tree, self._name))

    def _captured(
        self,
        part: Part,
        function: nn.Module,
        arguments: tuple[Any, ...],
        pairs: Sequence[tuple[nn.Parameter, nn.Parameter]],
        *,
        backward: bool,
    ) -> _GraphedPart:
        used = {id(stand_in) for stand_in in contents_of(function).parameters()}
        return _GraphedPart(
            part,
            function,
            arguments,
            [(parameter, stand_in) for parameter, stand_in in pairs if id(stand_in) in used],
            stream=self._stream,
            backward=backward,
            gradient_of=self._gradient_of,
        )

    def _gradient_of(self, parameter: nn.Parameter) -> Tensor:
        """One memory for the gradient of a parameter, whatever parts use it, at whatever size of the inputs."""
        if parameter not in self._memory:
            self._memory[parameter] = torch.zeros_like(parameter.detach())
        return self._memory[parameter]


class _PartArguments:
    """Calls parts as they are, and keeps copies of their arguments: a part may work in place."""

    def __init__(self) -> None:
        self.calls: list[tuple[Part, Any, tuple[Any, ...]]] = []

    def __call__(self, part: Part, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        self.calls.append((part, function, map_leaves(detached_copy, arguments)))
        return function(*arguments)


class _CapturedParts:
    """What is captured of calls of one key."""

    def __init__(self, parts: Mapping[str, _GraphedPart], stamp: TensorStamp) -> None:
        self.parts, self.stamp = MappingProxyType(dict(parts)), stamp

    def call(self, part: Part, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Replay a part, where it was captured with such arguments."""
        graphed = self.parts.get(part.name)
        return graphed(arguments) if graphed is not None and graphed.fits(arguments) else function(*arguments)


class _GraphedPart:
    """A part as a pair of graphs; its arguments may be nested, and some of them no tensors."""

    def __init__(
        self,
        part: Part,
        function: nn.Module,
        arguments: tuple[Any, ...],
        parameters: Sequence[tuple[nn.Parameter, nn.Parameter]],
        **options: Any,
    ) -> None:
        self._key = _key_of(arguments)

        def run(*tensors: Tensor) -> Any:
            remaining = iter(tensors)
            return function(*map_leaves(lambda leaf: next(remaining) if isinstance(leaf, Tensor) else leaf, arguments))

        self._is_output = part.kind == "head"
        self.function = GraphedFunction(run, tensors_of(arguments), parameters, **options)

    def fits(self, arguments: tuple[Any, ...]) -> bool:
        """Whether tensors are like those of the capture, and other values the same."""
        return bool(_key_of(arguments) == self._key)

    def __call__(self, arguments: tuple[Any, ...]) -> Any:
        result = self.function(*tensors_of(arguments))
        # the network's output goes to the user, who may look at it after the next replay
        return copied(result) if self._is_output else result


def _key_of(arguments: tuple[Any, ...]) -> Any:
    leaves = ((leaf_key(leaf), isinstance(leaf, Tensor) and leaf.requires_grad) for leaf in leaves_of(arguments))
    return nesting_of(arguments), [*leaves]


def _fault(function: Any, arguments: tuple[Any, ...]) -> str:
    """Why a part cannot be captured; empty where nothing is known against it."""
    if not isinstance(function, nn.Module):
        return "it computes its activations anew in backward (checkpoint_activations), with random states of the host"
    contents = contents_of(function)
    for name, module in contents.named_modules():
        if hook := hook_of(module):
            return f"{name or 'it'} has a {hook}, which would not run in a graph"
    for name, parameter in contents.named_parameters():
        for kind in ("_backward_hooks", "_post_accumulate_grad_hooks"):
            for hook_function in (getattr(parameter, kind, None) or {}).values():
                if not is_of_averages(hook_function):
                    return f"{name} has the hook {describe_hook(hook_function)}, which a graph would not run"
    try:
        fault = host_fault(function, arguments)
    except (RuntimeError, TypeError, ValueError) as error:
        return f"it cannot be looked through on fake tensors: {str(error).splitlines()[0]}"
    return f"it {fault}" if fault else ""
