"""PararealModule -> LocalModule: the network run in this process, on streams, with segments stacked, as CUDA graphs.

Three things keep one GPU from running n segments at the same time, and each has its remedy:

    all kernels are issued to one stream          a stream for each segment               streams.py
    Python issues them more slowly than they run  CUDA graphs                             graphed_network.py
    each kernel is too small to fill the GPU      segments of one structure as one batch  stacking.py
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from pararealize.argument_types import typed_arguments
from pararealize.errors import DeviceError, ExampleError, ModelError, PlanError
from pararealize.network.module import PararealModule
from pararealize.network.parts import read_equation
from pararealize.network.variant import Variant
from pararealize.restore import preserve_training_flags
from pararealize.tracing.call_signature import CallSignature
from pararealize.tracing.containers import leaves_of
from pararealize.tracing.example import Example
from pararealize.tracing.module_copy import copy_hooks, share_contents
from pararealize.tracing.module_view import ModuleView, mirror

from .capture_checks import check_hooks, check_static, example_error
from .graphed_network import ArgumentRecorder, call_key, capture_network, preserve_network_state, segment_devices
from .stacking import Stack, pays, stacked_graph, stacks_of
from .streams import Runner, make_streams

__all__ = ["LocalModule", "capture_graphs", "check_gpus", "require_gpus", "run_local"]

Stacking = Literal["auto"] | bool
Graphs = Literal["whole", "parts"]


@typed_arguments(DeviceError, "net", "stack")
def run_local(
    net: PararealModule, example_inputs: Any = None, *, streams: bool = True, stack: Stacking = False
) -> LocalModule:
    """Run a converted network in this process, its segments on CUDA streams of their own and stacked where asked for.

    On the CPU there are no streams, and segments run one after the other; stacking works there too.

    Args:
        net: the network; the result is a way to run it, not a copy.
        example_inputs: what ``stack="auto"`` measures on: a tensor, a tuple of positional or a dict of keyword
            arguments.
        streams: give every segment a stream of its own on its GPU; without, all work goes to the current one.
        stack: ``True`` to run segments of equal structure as one batched network, ``"auto"`` to do so where that is
            faster now, forward and backward, in the network's mode; ``False`` to leave them apart.

    Returns:
        A module with the network's parameters, buffers, names and mode, and its function.

    Raises:
        ModelError: ``net`` is not a :class:`PararealModule`.
        DeviceError: it is on the meta device.
        PlanError: an option is unknown, or ``stack=True`` and no two segments have one structure.
        ExampleError: ``stack="auto"`` without an example, or with one that the network does not accept.

    Example:
        >>> import torch
        >>> from pararealize import pararealize
        >>> from pararealize.models import resnet20
        >>> net = pararealize(resnet20(), n=3, cuts=["stage1.1", "stage1.2"])
        >>> fast = run_local(net, stack=True)
        >>> [str(stack) for stack in fast.stacks]
        ['g1 = g2']
        >>> x = torch.randn(2, 3, 32, 32)
        >>> torch.allclose(fast(x), net(x), atol=1e-4)
        True
    """
    _check_network(net)
    if not (stack == "auto" or isinstance(stack, bool)):
        raise PlanError(f"stack is {stack!r}; pass True, False or 'auto'")
    stacks: list[Stack] = []
    if stack:
        stacks, left_out = stacks_of(net)
        if stack is True and not stacks:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
            raise PlanError(
                f"no two segments of {net.plan.model} can be stacked: {reasons}; convert with cuts='paper', which "
                "makes equal segments, or pass stack=False"
            )
    if stack == "auto" and stacks:
        stacks = LocalModule(net, streams=streams)._faster(stacks, example_inputs)
    return LocalModule(net, streams=streams, stacks=stacks)


@typed_arguments(DeviceError, "net", "stack", "graphs")
def capture_graphs(
    net: PararealModule,
    example_inputs: Any,
    *,
    graphs: Graphs | None = None,
    training: bool | None = None,
    streams: bool = True,
    stack: Stacking = False,
) -> LocalModule:
    """Capture a converted network on GPUs as CUDA graphs, which run without Python.

    It is :func:`run_local` and :meth:`LocalModule.capture` in one.

    Args:
        net: the network, on one or several GPUs.
        example_inputs: a batch of the size to capture.
        graphs: ``"whole"`` for one graph of the whole forward and one of the whole backward, with the segments as
            parallel branches (one GPU only); ``"parts"`` for one of each part, replayed on its segment's stream;
            ``None`` for the first on one GPU, the second on several.
        training: the mode to capture; the network's own when left out.
        streams: as for :func:`run_local`; without, graphs have no parallel branches.
        stack: as for :func:`run_local`.

    Returns:
        A module that replays the graphs where a call fits them, and runs eagerly elsewhere.

    Raises:
        PararealizeError: as the two do.
    """
    local = run_local(net, example_inputs, streams=streams, stack=stack)
    local.capture(example_inputs, graphs=graphs, training=training)
    return local


class LocalModule(ModuleView):
    """A parareal network, run in this process by streams, stacks and CUDA graphs; made by :func:`run_local`.

    Parameters, buffers, their names, ``state_dict()``, ``train()`` and ``to()`` are the network's own, so that an
    optimiser may have been made before or after. A deep copy is one of the network, without captures.

    Attributes:
        net: the network.
        stacks: which segments run as one.
    """

    net: PararealModule
    stacks: tuple[Stack, ...]

    def __init__(self, net: PararealModule, *, streams: bool = True, stacks: Sequence[Stack] = ()) -> None:
        super().__init__()
        mirror(self, net)
        share_contents(self, net)
        self.__dict__.update(net=net, stacks=tuple(stacks), _streams=streams, _captures={})
        graph = stacked_graph(net, stacks) if stacks else net.graph
        self.__dict__["_runner"] = Runner(net, graph, self._make_streams())
        # those of the network's later recordings, whose segments are not stacked
        self.__dict__["_runners"] = weakref.WeakKeyDictionary()
        self.__dict__["_call"] = CallSignature.of_graph(net.graph)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's output: by a captured graph where one fits, eagerly elsewhere."""
        runner, inputs = self.runner_of(args, kwargs)
        graphed = self._captures.get((runner, call_key(self.training, inputs))) if self._captures else None
        if graphed is None or not graphed.fits(inputs):
            return runner.run(*inputs)
        return graphed(inputs)

    def runner_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Runner, list[torch.Tensor]]:
        """What runs a call, by the recording of the network that is right for it, and the call's tensors in order."""
        recording = self.net.recording_of(*args, **kwargs)
        if not isinstance(recording, Variant):
            return self._runner, list(self._call.tensors(args, kwargs).values())
        runner = self._runners.get(recording)
        if runner is None:
            runner = self._runners[recording] = Runner(recording, recording.graph, self._runner.streams)
        recording.follow_modes()
        return runner, list(CallSignature.of_graph(recording.graph).tensors(args, kwargs).values())

    def capture(self, example_inputs: Any, *, graphs: Graphs | None = None, training: bool | None = None) -> None:
        """Capture one mode and one size of input as CUDA graphs; what was captured before for these is replaced.

        In train mode forward and backward are captured, in eval mode the forward alone, for use under ``no_grad``. The
        state of autocast is part of what is captured. Running statistics, gradients and random states stay as found.

        Calls with other sizes, types or modes run eagerly. The same holds for an input that requires a gradient where
        the example's did not. Replayed graphs hold one step at a time: backward has to come before the next forward.

        Args:
            example_inputs: a tensor, a tuple of positional or a dict of keyword arguments.
            graphs: ``"whole"`` or ``"parts"``; see :func:`capture_graphs`.
            training: the mode; the network's own when left out.

        Raises:
            DeviceError: the network is not on a GPU, the example on another device, or ``"whole"`` on several GPUs.
            ExampleError: the network does not accept the example.
            CaptureError: something in the network needs Python or values while it runs: hooks, sizes or branches that
                depend on values, random numbers of the host.
            PlanError: an option is unknown.
        """
        net, training = self.net, self.training if training is None else training
        devices = require_gpus(net)
        graphs = graphs or ("whole" if len(set(devices)) == 1 else "parts")
        if graphs not in ("whole", "parts"):
            raise PlanError(f"graphs is {graphs!r}; pass 'whole', 'parts' or None")
        if graphs == "whole" and len(set(devices)) > 1:
            raise DeviceError(
                f"one graph of the whole network needs one GPU, and the segments are on {_listed(devices)}; "
                "pass graphs='parts', or convert with one device"
            )
        check_hooks(net)
        inputs = self._example(example_inputs)
        runner, _ = self.runner_of(*self._call.as_arguments(example_inputs))
        with preserve_training_flags(net), torch.inference_mode(False), torch.set_grad_enabled(training):
            if training != self.training:
                net.train(training)
            check_static(net, runner, inputs)
            key = runner, call_key(training, inputs)
            if old := self._captures.pop(key, None):
                old.release()
            whole = graphs == "whole"
            self._captures[key] = capture_network(net, runner, inputs, whole=whole, training=training)

    def release(self) -> PararealModule:
        """Give the memory of all captures back; returns the network, which was an ordinary module all along."""
        for graphed in self._captures.values():
            graphed.release()
        self._captures.clear()
        return self.net

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "net" not in self.__dict__:
                raise
            return getattr(self.__dict__["net"], name)

    def __deepcopy__(self, memo: dict[int, Any]) -> LocalModule:
        net = copy.deepcopy(self.net, memo)
        if id(self) in memo:  # by a hook of the network's that refers to this module
            copied: LocalModule = memo[id(self)]
            return copied
        segments = {stack.segments for stack in self.stacks}
        stacks = [stack for stack in stacks_of(net)[0] if stack.segments in segments] if segments else []
        copied = memo[id(self)] = LocalModule(net, streams=self._streams, stacks=stacks)
        copy_hooks(self, copied, memo)
        return copied

    def __reduce__(self) -> Any:
        return self.net.__reduce__()

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> LocalModule:
        self.net._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._runner.streams = self._make_streams()
        self._runners.clear()
        return self

    def _make_streams(self) -> tuple[torch.cuda.Stream, ...] | None:
        devices = segment_devices(self.net)
        return make_streams(devices) if self._streams and all(map(_is_gpu, devices)) else None

    def _example(self, example_inputs: Any) -> list[torch.Tensor]:
        """The tensors of example inputs in the order of the signature, where the network is."""
        if example_inputs is None:
            raise ExampleError("no example inputs; pass a batch of the size that will be run")
        if self.net.segment_devices is None:
            home = segment_devices(self.net)[0]
            away = {
                str(t.device) for t in leaves_of(example_inputs) if isinstance(t, torch.Tensor) and t.device != home
            }
            if away:
                raise DeviceError(
                    f"the example is on {_listed(away)} and the network on {home}; move it with .to({str(home)!r})"
                )
        tensors = [*self._call.tensors_of(example_inputs).values()]
        copies = [*Example.of(self.net, example_inputs).tensors.values()]
        return [copy.requires_grad_(tensor.requires_grad) for copy, tensor in zip(copies, tensors, strict=True)]

    def _faster(self, stacks: Sequence[Stack], example_inputs: Any) -> list[Stack]:
        """Those of the stacks that take less time than their segments."""
        inputs = self._example(example_inputs)
        with preserve_network_state(self.net):
            recorder = ArgumentRecorder(self.net, self.net.graph)
            with torch.no_grad():
                try:
                    recorder.run(*inputs)
                except (RuntimeError, TypeError, ValueError) as error:
                    raise example_error(self.net, error) from error
            calls = read_equation(self.net.graph).calls
            x = {stack: [recorder.arguments[calls[name]][0] for name in stack.segments] for stack in stacks}
            return [stack for stack in stacks if pays(stack, x[stack], backward=self.training)]


# ---------------------------------------------------------------------------------------------------------- bad input


def _is_gpu(device: torch.device) -> bool:
    return device.type == "cuda"


def require_gpus(net: nn.Module) -> list[torch.device]:
    """The GPU of each segment of a network, in order; of a module without segments, its own.

    Raises:
        DeviceError: one of them is no GPU.
    """
    devices = segment_devices(net)
    check_gpus(devices)
    return devices


def check_gpus(
    devices: Iterable[torch.device],
    remedy: str = "move the network with .to('cuda') where there is one, or use run_local without capture",
) -> None:
    """Refuse devices on which there are no CUDA graphs.

    Args:
        devices: of a network, or where it is to be.
        remedy: what to do instead.

    Raises:
        DeviceError: one of them is no GPU.
    """
    devices = list(devices)
    if not all(map(_is_gpu, devices)):
        gpus = f"{torch.cuda.device_count()} GPUs" if torch.cuda.is_available() else "no GPU that torch can use"
        raise DeviceError(
            f"CUDA graphs need a network on GPUs, and this one is on {_listed(devices)}; this machine has {gpus}: "
            f"{remedy}"
        )


def _listed(devices: Iterable[Any]) -> str:
    return ", ".join(sorted({str(device) for device in devices}))


def _check_network(net: Any) -> None:
    if isinstance(net, LocalModule):
        raise ModelError("the network is run locally already; pass local.net, or what local.release() returns")
    if not isinstance(net, PararealModule):
        raise ModelError(f"{type(net).__name__} is not a parareal network; pass what pararealize(model, n) returns")
    if any(parameter.is_meta for parameter in net.parameters()):
        raise DeviceError(
            f"{net.plan.model} is on the meta device, where nothing runs; give it memory first with "
            "net.to_empty(device=...) and load its weights"
        )
