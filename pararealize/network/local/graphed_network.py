"""A network's runner, inputs of one size, a mode -> a GraphedNetwork: CUDA graphs for calls with inputs of that size.

Two ways: as a whole, one graph of the forward and one of the backward, in which segments are parallel branches, and in
parts, a pair of graphs for every part, replayed on its segment's stream, which works on several GPUs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn

from pararealize.errors import CaptureError, ModelError
from pararealize.network.module import PararealModule
from pararealize.restore import preserve_run_state
from pararealize.tracing.containers import copied, map_leaves
from pararealize.tracing.module_view import BorrowedModule
from pararealize.tracing.network_piece import contents_of
from pararealize.tracing.operations import tensors_in

from .cuda_graph import GraphedFunction
from .stacking import Stack
from .streams import CALLER, Runner, arguments_of, lend, make_streams

__all__ = [
    "ArgumentRecorder",
    "autocast_without_cache",
    "call_key",
    "capture_network",
    "detached_copy",
    "leaf_key",
    "preserve_network_state",
    "segment_devices",
    "stand_ins",
]


def capture_network(
    net: PararealModule, runner: Runner, inputs: Sequence[Any], *, whole: bool, training: bool
) -> GraphedNetwork:
    """Capture a network: in one graph forward and one backward, or in a pair of graphs for every part.

    Args:
        net: the network, in the mode to capture; its buffers and random states are put back.
        runner: runs it on its streams.
        inputs: inputs of the size to capture, in the order of the signature.
        whole: whether to capture it in one.
        training: whether to capture the backward pass as well.

    Raises:
        CaptureError: CUDA refuses what the network does.
    """
    capture = _capture_whole if whole else _capture_parts
    with preserve_network_state(net), autocast_without_cache():
        try:
            return capture(net, runner, inputs, training=training)
        except RuntimeError as error:
            raise CaptureError(
                f"{net.plan.model} cannot be captured as CUDA graphs: {error}; run it with run_local, or look "
                "for what in it waits for the GPU or depends on values"
            ) from error


class GraphedNetwork:
    """A network as CUDA graphs: replayed where a call fits the capture and the tensors captured are still in place.

    Args:
        net: the network; its modes and gradients are those of the capture.
        inputs: the inputs that were captured with, in the order of the signature.
        replay: gives the outputs for other such inputs, in memory that its next call overwrites.
        graphs: what it replays.
    """

    def __init__(
        self,
        net: PararealModule,
        inputs: Sequence[Any],
        replay: Callable[[Sequence[Any]], Any],
        graphs: Collection[GraphedFunction],
    ) -> None:
        self.replay, self.graphs = replay, graphs
        self.modules = list(net.modules())
        self.flags = [module.training for module in self.modules]
        self.inputs_require_grad = _require_grad(inputs)
        self.differentiable = torch.is_grad_enabled()
        self.holders = [d for module in self.modules for d in (module._parameters, module._buffers) if d]
        self.tensors = [tensor for tensor in self._now() if tensor is not None]
        # The graphs go on using these addresses; a reference keeps the allocator from handing them to other tensors.
        self.memory = [tensor.detach() for tensor in self.tensors]
        self.state = self._state()
        self.name = net.plan.model

    def __call__(self, inputs: Sequence[Any]) -> Any:
        """Replay; the outputs are copies, since the next call overwrites the graphs' own."""
        output = self.replay(inputs)
        self._check()
        return copied(output)

    def fits(self, inputs: Sequence[Any]) -> bool:
        """Whether modes are as captured, and no gradient is asked for that would not come."""
        if self.flags != [module.training for module in self.modules]:
            return False
        if not torch.is_grad_enabled():
            return True
        pairs = zip(_require_grad(inputs), self.inputs_require_grad, strict=True)
        return self.differentiable and all(captured or not now for now, captured in pairs)

    def release(self) -> None:
        """Give the graphs' memory back."""
        for graphed in self.graphs:
            graphed.release()

    def _check(self) -> None:
        """Refuse parameters that were replaced, moved, frozen or unfrozen since the capture.

        It runs after the graphs have been started, in the time that they take; they touch the old memory alone.
        """
        if self._state() != self.state:
            raise ModelError(
                f"parameters or buffers of {self.name} have been moved, replaced or frozen since its graphs were "
                "captured (to(), half(), load_state_dict(assign=True), requires_grad_()), and the graphs still use the "
                "old ones; call capture() again, or release() to run eagerly"
            )

    def _now(self) -> Iterator[Tensor | None]:
        return chain.from_iterable(d.values() for d in self.holders)

    def _state(self) -> tuple[list[int], list[int], list[bool]]:
        places = [*map(Tensor.data_ptr, self.tensors)]
        return [*map(id, self._now())], places, [tensor.requires_grad for tensor in self.tensors]


def _require_grad(inputs: Sequence[Any]) -> list[bool]:
    return [isinstance(value, Tensor) and value.requires_grad for value in inputs]


def _capture_whole(net: PararealModule, runner: Runner, inputs: Sequence[Any], *, training: bool) -> GraphedNetwork:
    """One graph of the whole forward, one of the whole backward; segments are branches that run at the same time."""
    device = segment_devices(net)[0]

    def function(*tensors: Tensor) -> Any:
        remaining = iter(tensors)
        return runner.run(*(next(remaining) if isinstance(value, Tensor) else value for value in inputs))

    with stand_ins(net, net.plan.model) as pairs:
        graphed = GraphedFunction(
            function,
            [value.detach().to(device).requires_grad_(value.requires_grad) for value in tensors_in(inputs)],
            pairs,
            stream=torch.cuda.Stream(device=device),
            branches=runner.streams or (),
            backward=training,
        )
    return GraphedNetwork(net, inputs, lambda values: graphed(*tensors_in(values)), [graphed])


def _capture_parts(net: PararealModule, runner: Runner, inputs: Sequence[Any], *, training: bool) -> GraphedNetwork:
    """Graphs of every part, forward and backward, each replayed on its segment's stream.

    A part stays eager where it reads what is no tensor, or something on another device.
    """
    recorder = ArgumentRecorder(net, runner.graph)
    recorder.run(*inputs)
    devices = segment_devices(net)
    streams = runner.streams or make_streams(devices)
    for stream in streams:  # the arguments were computed on the current streams, and are read on these
        stream.wait_stream(torch.cuda.current_stream(stream.device))
    graphed: dict[fx.Node, GraphedFunction] = {}
    with stand_ins(net, net.plan.model) as pairs:
        real = {id(stand_in): parameter for parameter, stand_in in pairs}
        for node, args in recorder.arguments.items():
            modules, j = _modules_of(net, node), runner.lanes[node]
            if j == CALLER or not _is_on_one_device(modules, args, devices[j - 1]):
                continue
            used = dict.fromkeys(p for module in modules for p in contents_of(module).parameters() if id(p) in real)
            pairs = [(real[id(stand_in)], stand_in) for stand_in in used]
            function = node.target if isinstance(node.target, Stack) else modules[0]
            stream = streams[j - 1]
            for value in args:
                lend(value, stream)
            with torch.cuda.stream(stream) if runner.streams else contextlib.nullcontext():
                graphed[node] = GraphedFunction(function, args, pairs, stream=stream, backward=training)
    replayer = Runner(net, runner.graph, runner.streams, graphed)
    return GraphedNetwork(net, inputs, lambda values: replayer.run(*values), graphed.values())


class ArgumentRecorder(Runner):
    """Runs a network where it is called, and keeps copies of the arguments of each part: a part may work in place."""

    def __init__(self, net: PararealModule, graph: fx.Graph) -> None:
        super().__init__(net, graph)
        self.arguments: dict[fx.Node, list[Any]] = {}

    def _call(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        if node.op == "call_module" or isinstance(node.target, Stack):
            args = arguments_of(node, values)
            self.arguments[node] = map_leaves(detached_copy, args)
        return super()._call(node, values)


def detached_copy(leaf: Any) -> Any:
    """A copy of a tensor, which asks for a gradient where that does; anything else as it is."""
    return leaf.detach().clone().requires_grad_(leaf.requires_grad) if isinstance(leaf, Tensor) else leaf


def _modules_of(net: PararealModule, node: fx.Node) -> tuple[nn.Module, ...]:
    """The modules that a node of the equation runs."""
    return node.target.pieces if isinstance(node.target, Stack) else (net.get_submodule(str(node.target)),)


def _is_on_one_device(modules: Sequence[nn.Module], args: Sequence[Any], device: torch.device) -> bool:
    """Whether a part reads tensors alone, all on its segment's device: transfers do not belong into a graph."""
    if any(isinstance(inner, BorrowedModule) for module in modules for inner in contents_of(module).modules()):
        return False
    read = [*args, *(t for module in map(contents_of, modules) for t in (*module.parameters(), *module.buffers()))]
    return all(isinstance(value, Tensor) and value.device == device for value in read)


@contextlib.contextmanager
def stand_ins(net: nn.Module, name: str) -> Iterator[list[tuple[nn.Parameter, nn.Parameter]]]:
    """Parameters over the same memory in the place of the network's own, in pairs (own, stand-in), while capturing.

    Autograd's AccumulateGrad node of a parameter belongs to the stream on which the parameter was first used, which in
    a capture must be a capturing one, and it calls the parameter's hooks. New parameters have neither a past on other
    streams nor hooks. ``torch.cuda.make_graphed_callables`` leaves the first to its callers, see "Partial-network
    capture" in https://docs.pytorch.org/docs/stable/notes/cuda.html.
    """
    pairs: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}
    replaced: list[tuple[dict[str, nn.Parameter | None], str, nn.Parameter]] = []
    for module in net.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.requires_grad:
                pairs.setdefault(id(parameter), (parameter, nn.Parameter(parameter.detach())))
                replaced.append((module._parameters, name, parameter))
    for holder, name, parameter in replaced:
        holder[name] = pairs[id(parameter)][1]
    try:
        yield list(pairs.values())
    finally:
        for holder, name, parameter in replaced:
            holder[name] = parameter
    if any(parameter.data_ptr() != stand_in.data_ptr() for parameter, stand_in in pairs.values()):
        raise CaptureError(
            f"{name} moves its parameters to other memory while it runs, as recurrent layers may; run it "
            "with run_local alone, or let it settle with a forward before the capture"
        )


# ------------------------------------------------------------------------------------------------- before and around


def call_key(training: bool, inputs: Sequence[Any]) -> Any:
    """What has to be equal for a captured graph to fit: mode, autocast, tensors' keys and plain values."""
    kinds = tuple(map(leaf_key, inputs))
    autocast = torch.is_autocast_enabled("cuda")
    return training, torch.get_autocast_dtype("cuda") if autocast else None, kinds


def leaf_key(leaf: Any) -> Any:
    """What has to be equal for a tensor or a plain value to fit a capture; not its text, which leaves things out."""
    if isinstance(leaf, Tensor):
        return tensor_key(leaf)
    # no NaN is equal to another one
    return type(leaf), leaf if isinstance(leaf, Hashable) and not isinstance(leaf, float) else repr(leaf)


def tensor_key(tensor: Tensor) -> Any:
    """What has to be equal for a tensor to fit a capture: size, type, device and the order of its memory.

    The kernels of a graph were chosen for one order of memory, and what they give has the order that follows from it.
    """
    order: Any = tensor.stride()
    if tensor.is_contiguous():
        order = torch.contiguous_format
    elif tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        order = torch.channels_last
    elif tensor.ndim == 5 and tensor.is_contiguous(memory_format=torch.channels_last_3d):
        order = torch.channels_last_3d
    return tensor.shape, tensor.dtype, tensor.device, order


def segment_devices(net: nn.Module) -> list[torch.device]:
    """The device of each segment, in order; of a module without segments, of the module."""
    if not isinstance(net, PararealModule):
        return [next(net.parameters()).device]
    if net.segment_devices is not None:  # torch.device("cuda") is the current GPU, which tensors call by its number
        return [torch.empty(0, device=device).device for device in net.segment_devices]
    return [next(net.parameters()).device] * net.plan.n


def preserve_network_state(
    net: nn.Module, devices: Sequence[torch.device] | None = None
) -> contextlib.AbstractContextManager[None]:
    """Put back, on leaving, what a run moves on: buffers and random states. Gradients must not be touched within.

    Args:
        net: the network.
        devices: where it draws random numbers; left out, where its parameters are.
    """
    return preserve_run_state(net, segment_devices(net) if devices is None else devices)


def autocast_without_cache(kind: str = "cuda") -> contextlib.AbstractContextManager[Any]:
    """The caller's autocast without its cache of cast weights.

    A weight that is cast while a graph is captured lies in the graph's memory; a cached copy of it, read outside the
    graph, would change with every replay. The reference of ``torch.cuda.make_graphed_callables`` asks for the same.
    """
    if not torch.is_autocast_enabled(kind):
        return contextlib.nullcontext()
    return torch.autocast(kind, dtype=torch.get_autocast_dtype(kind), cache_enabled=False)
