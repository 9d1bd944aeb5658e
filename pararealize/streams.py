"""A parareal network's graph, CUDA streams -> the same network run with one stream a segment, forks and joins included.

Stream j runs C^j, g^j, F^{j-1} and what is added to y_j; the first runs the stem as well, the last one the head:

    caller ─┬─ stem ── g^1 ──┐                                        ┬  all streams wait for the caller
            ├─ C^2 ─── g^2 ──┴─ r_1 ─ F^1 ─ z_2 ──┐                   ┴  one stream waits for one value of another
            └─ C^3 ─── g^3 ───────────────────────┴─ r_2 ─ F^2 ─ z_3 ─ head ── caller, who waits for all

Nothing has to be said of the backward pass: autograd runs each operation's backward on the stream of its forward, and
makes streams wait for one another where a gradient passes between them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from .calls import tensors_in
from .emit import PararealModule
from .stacking import Stack

__all__ = ["CALLER", "Runner", "lanes_of", "lend", "make_streams"]

CALLER = 0  # the lane of inputs and outputs: whatever stream is current


class Runner(fx.Interpreter):
    """Runs the equation of a network node by node, each on the stream of its segment.

    Args:
        net: whose submodules the graph calls.
        graph: the network's own, or one in which some segments are stacked.
        streams: one for every segment, or ``None`` to run everything where it is called, as on a CPU.
        parts: what to call in place of a node.
    """

    def __init__(
        self,
        net: PararealModule,
        graph: fx.Graph,
        streams: Sequence[torch.cuda.Stream] | None,
        parts: Mapping[fx.Node, Callable[..., Any]] | None = None,
    ) -> None:
        super().__init__(net, graph=graph)
        self.lanes, self.streams, self.parts = lanes_of(graph, net.plan.n), streams, parts or {}
        self.done: dict[fx.Node, torch.cuda.Event] = {}

    def run(self, *inputs: Any) -> Any:  # type: ignore[override]
        """The network's output for inputs in the order of the graph's placeholders."""
        callers = {stream: torch.cuda.current_stream(stream.device) for stream in self.streams or ()}
        for stream, caller in callers.items():
            stream.wait_stream(caller)
        try:
            output = super().run(*inputs)
        finally:  # after an error as well: whatever was started comes before what the caller does next
            for stream, caller in callers.items():
                caller.wait_stream(stream)
            self.done.clear()
            self.env = {}  # which would keep the output, and with it autograd's graph
        for tensor in tensors_in(output):
            for caller in callers.values():
                lend(tensor, caller)
        return output

    def run_node(self, n: fx.Node) -> Any:
        """Wait for what comes from other streams, run the node on its own, and say when its value is there."""
        lane = self.lanes[n]
        if self.streams is None or lane == CALLER:
            return self._call(n)
        stream = self.streams[lane - 1]
        with contextlib.ExitStack() as current:
            for argument in n.all_input_nodes:
                other = self.lanes[argument]
                if other == lane:
                    continue
                if other != CALLER:
                    stream.wait_event(self.done[argument])
                    if self.streams[other - 1].device != stream.device:  # a copy is issued on its source's stream
                        current.enter_context(torch.cuda.stream(self.streams[other - 1]))
                        continue
                for tensor in tensors_in(self.env[argument]):
                    lend(tensor, stream)
            current.enter_context(torch.cuda.stream(stream))
            value = self._call(n)
            if any(self.lanes[user] not in (lane, CALLER) for user in n.users):
                self.done[n] = stream.record_event()
        return value

    def _call(self, n: fx.Node) -> Any:
        if n in self.parts:
            args, _ = self.fetch_args_kwargs_from_env(n)
            return self.parts[n](*args)
        return super().run_node(n)


def lanes_of(graph: fx.Graph, n: int) -> dict[fx.Node, int]:
    """The segment, 1 to n, on whose stream each node of an equation runs; 0 for inputs and outputs.

    A called part says it by its name; what is computed from several values belongs to the last segment among them (r_j
    to segment j+1); a transfer belongs to the first segment that reads it.
    """
    lanes: dict[fx.Node, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            lanes[node] = _segment_of(str(node.target), n)
        elif node.op == "output":
            lanes[node] = CALLER
        else:
            read = max((lanes[argument] for argument in node.all_input_nodes), default=CALLER)
            lanes[node] = node.target.first if isinstance(node.target, Stack) else read
    for node in reversed(graph.nodes):
        if node.op == "call_method" and node.target == "to":
            lanes[node] = min((lanes[user] for user in node.users if lanes[user] != CALLER), default=lanes[node])
    return lanes


def make_streams(devices: Sequence[torch.device]) -> tuple[torch.cuda.Stream, ...]:
    """A new stream for every segment on its device."""
    return tuple(torch.cuda.Stream(device=device) for device in devices)


def _segment_of(target: str, n: int) -> int:
    part, _, name = target.partition(".")
    match part:
        case "segments" | "adapters":
            return int(name[1:])
        case "coarse":
            return int(name[1:]) + 1
        case "head":
            return n
        case _:
            return 1  # the stem and the context


def lend(tensor: torch.Tensor, stream: torch.cuda.Stream) -> None:
    """Keep the memory of a tensor from another use until what the stream has been asked to do is done."""
    if tensor.device == stream.device:
        tensor.record_stream(stream)
