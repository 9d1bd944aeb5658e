"""A parareal network's graph, CUDA streams -> Runner: calls the nodes one by one, each on the stream of its segment.

Stream j runs C^j, g^j, F^{j-1} and what is added to y_j; the first runs the stem as well, the last one the head:

    caller ─┬─ stem ── g^1 ──┐                                        ┬  all streams wait for the caller
            ├─ C^2 ─── g^2 ──┴─ r_1 ─ F^1 ─ z_2 ──┐                   ┴  one stream waits for one value of another
            └─ C^3 ─── g^3 ───────────────────────┴─ r_2 ─ F^2 ─ z_3 ─ head ── caller, who waits for all

Nothing has to be said of the backward pass: autograd runs each operation's backward on the stream of its forward, and
makes streams wait for one another where a gradient passes between them,
https://docs.pytorch.org/docs/stable/notes/cuda.html#stream-semantics-of-backward-passes.

Two rules of CUDA are kept here. A stream waits (by an event) before it reads what another one writes. And the caching
allocator gives a freed tensor's memory to the next request on the stream that it was *allocated* on, at once, without
looking at other streams, so that whatever another stream reads has to be lent to that stream by ``record_stream``,
https://docs.pytorch.org/docs/stable/generated/torch.Tensor.record_stream.html.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import fx

from pararealize.network.module import PararealModule
from pararealize.network.parts import parts_by_node, read_parts
from pararealize.network.variant import Variant
from pararealize.plan.parts import Part
from pararealize.tracing.call_signature import CallSignature
from pararealize.tracing.containers import tensors_of

from .stacking import Stack

__all__ = ["CALLER", "Runner", "arguments_of", "lanes_of", "lend", "make_streams"]

CALLER = 0  # the lane of inputs and outputs: whatever stream is current


class Runner:
    """Runs the equation of a network node by node, each on the stream of its segment.

    Args:
        net: whose submodules the graph calls.
        graph: the network's own, or one in which some segments are stacked.
        streams: one for every segment, or ``None`` to run everything where it is called, as on a CPU.
        parts: what to call in place of a node.
    """

    def __init__(
        self,
        net: PararealModule | Variant,
        graph: fx.Graph,
        streams: Sequence[torch.cuda.Stream] | None = None,
        parts: Mapping[fx.Node, Callable[..., Any]] = MappingProxyType({}),
    ) -> None:
        self.net, self.graph, self.streams = net, graph, streams
        self.lanes = lanes_of(graph, read_parts(net.graph))
        self.inputs = list(CallSignature.tensor_nodes(graph).values())
        self.output = graph.output_node()
        self.order = [node for node in graph.nodes if node.op != "output" and not CallSignature.begins(node)]
        self.calls = {node: parts.get(node) or self._callable(node) for node in self.order}
        self.last_reads = _last_reads(self.order, self.output)

    def run(self, *inputs: Any) -> Any:
        """The network's output for the tensors of a call, in the order of its signature."""
        callers = {stream: torch.cuda.current_stream(stream.device) for stream in self.streams or ()}
        for stream, caller in callers.items():
            stream.wait_stream(caller)
        arguments = inputs if self.streams is None else [_read_by_several(value) for value in inputs]
        values: dict[fx.Node, Any] = dict(zip(self.inputs, arguments, strict=True))
        events: dict[fx.Node, torch.cuda.Event] = {}  # after a value that other streams read
        try:
            for node in self.order:
                if self.streams is None or self.lanes[node] == CALLER:
                    values[node] = self._call(node, values)
                else:
                    values[node] = self._call_on(node, values, events)
                for value in self.last_reads[node]:
                    del values[value]
        finally:  # after an error as well: whatever was started comes before what the caller does next
            for stream, caller in callers.items():
                caller.wait_stream(stream)
        output = fx.map_arg(self.output.args[0], values.__getitem__)
        for tensor in tensors_of(output):
            for caller in callers.values():
                lend(tensor, caller)
        return output

    def _call_on(self, node: fx.Node, values: Mapping[fx.Node, Any], events: dict[fx.Node, torch.cuda.Event]) -> Any:
        """Wait for what comes from other streams, call the node on its own, and record an event behind it."""
        assert self.streams is not None
        lane = self.lanes[node]
        stream = self.streams[lane - 1]
        with contextlib.ExitStack() as current:
            for argument in node.all_input_nodes:
                other = self.lanes[argument]
                if other == lane:
                    continue
                if other != CALLER:
                    stream.wait_event(events[argument])
                    if self.streams[other - 1].device != stream.device:
                        # A copy between GPUs is issued on the source's current stream, and waits for and holds up the
                        # target's (aten/src/ATen/native/cuda/Copy.cu): both have to be the segments' own.
                        current.enter_context(torch.cuda.stream(self.streams[other - 1]))
                        continue
                for tensor in tensors_of(values[argument]):
                    lend(tensor, stream)
            current.enter_context(torch.cuda.stream(stream))
            value = self._call(node, values)
            if any(self.lanes[user] not in (lane, CALLER) for user in node.users):
                events[node] = stream.record_event()
        return value

    def _call(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        return self.calls[node](*arguments_of(node, values), **node.kwargs)

    def _callable(self, node: fx.Node) -> Callable[..., Any]:
        if callable(node.target):
            return node.target
        if node.op == "call_method":
            return getattr(torch.Tensor, node.target)  # type: ignore[no-any-return]
        module_in = operator.attrgetter(node.target)
        return lambda *args: module_in(self.net)(*args)  # noqa: PLW0108 - looked up in every call, as fx does


def arguments_of(node: fx.Node, values: Mapping[fx.Node, Any]) -> list[Any]:
    """What a node of an equation is called with; its arguments are not nested."""
    return [values[argument] if isinstance(argument, fx.Node) else argument for argument in node.args]


def _last_reads(order: Sequence[fx.Node], output: fx.Node) -> dict[fx.Node, list[fx.Node]]:
    """For each node, the values that nothing reads after it."""
    read_later = set(output.all_input_nodes)
    last: dict[fx.Node, list[fx.Node]] = {}
    for node in reversed(order):
        last[node] = [value for value in (node, *node.all_input_nodes) if value not in read_later]
        read_later.update((node, *node.all_input_nodes))
    return last


def lanes_of(graph: fx.Graph, network: Mapping[str, Part]) -> dict[fx.Node, int]:
    """The device, 1 to n, on whose stream each node of an equation runs; 0 for inputs and outputs.

    A part runs where its segment does; what is computed from several values belongs to the last segment among them
    (r_j to segment j+1); a transfer belongs to the first segment that reads it.

    Args:
        graph: the network's own, or one in which some segments are stacked.
        network: the parts of its own graph, by name, which say where they run.
    """
    lanes: dict[fx.Node, int] = {}
    parts = parts_by_node(graph)
    for node in graph.nodes:
        if (part := parts.get(node)) is not None:
            lanes[node] = network[part.name].home
        elif node.op == "output":
            lanes[node] = CALLER
        else:
            read = max((lanes[argument] for argument in node.all_input_nodes), default=CALLER)
            lanes[node] = network[node.target.first].home if isinstance(node.target, Stack) else read
    for node in reversed(graph.nodes):
        if node.op == "call_method" and node.target == "to":
            lanes[node] = min((lanes[user] for user in node.users if lanes[user] != CALLER), default=lanes[node])
    return lanes


def make_streams(devices: Sequence[torch.device]) -> tuple[torch.cuda.Stream, ...]:
    """A new stream for every segment on its device."""
    return tuple(torch.cuda.Stream(device=device) for device in devices)


def _read_by_several(value: Any) -> Any:
    """A view of an input, in which the gradients from several streams are summed before they reach the leaf.

    Autograd warns where a leaf itself gets gradients on several streams.
    """
    return value.view_as(value) if isinstance(value, torch.Tensor) and value.requires_grad else value


def lend(tensor: torch.Tensor, stream: torch.cuda.Stream) -> None:
    """Keep the memory of a tensor from another use until the stream has done what it has been asked to do so far."""
    if tensor.device == stream.device:
        tensor.record_stream(stream)
