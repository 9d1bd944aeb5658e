"""Pieces, coarse blocks, devices -> the graph of the network itself: equation (3) of the paper as code.

    x_1 = self.stem(x)                      C^1
    x_2 = self.adapters.C2(x)               C^2              (2)
    y_1 = self.segments.g1(x_1)             independent of
    y_2 = self.segments.g2(x_2)             one another
    r_1 = y_1 - x_2                         (3a), (3b)
    z_2 = y_2 + self.coarse.F1(r_1)         (3b), (3c)
    return self.head(z_2)                   (4)

``r_j`` is the propagated residual of the paper (its r with a tilde): z_j - x_{j+1} = r_j + F^{j-1}(r_{j-1}),
so that one tensor, z_j, crosses each interface.

Source: Lee, Lee and Park, "A Parareal Architecture for Very Deep Convolutional Neural Network".
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from pararealize.coarse.copies import takes_context

from .pieces import Pieces

__all__ = ["write_equation"]


def write_equation(
    pieces: Pieces, coarse: Mapping[int, nn.Module | None], devices: Sequence[torch.device] | None
) -> fx.Graph:
    """The network's own graph: equation (3), with every transfer between devices written out.

    Args:
        pieces: graphs of stem, segments and head, and what they read.
        coarse: F^j by j = 1..n-1; ``None`` where it is g^{j+1} itself.
        devices: one for every segment, or ``None``: no transfers.
    """
    writer = _EquationWriter(pieces, coarse, devices)
    n = pieces.plan.n
    x = {1: writer.stem()}
    for j in range(2, n + 1):
        x[j] = writer.adapter(j, x[1])
    y = {j: writer.segment(j, x[j], f"y_{j}") for j in range(1, n + 1)}
    z = y[1]
    for j in range(1, n):
        r = writer.node(operator.sub, (z, x[j + 1]), f"r_{j}", j + 1)
        z = writer.node(operator.add, (y[j + 1], writer.coarse_block(j, r)), f"z_{j + 1}", j + 1)
    writer.head(z)
    return writer.graph


class _EquationWriter:
    """Appends the calls of parts to a graph, and a transfer wherever a value is not on the device that reads it.

    Attributes:
        graph: the graph that is written.
    """

    def __init__(
        self, pieces: Pieces, coarse: Mapping[int, nn.Module | None], devices: Sequence[torch.device] | None
    ) -> None:
        self.graph = fx.Graph()
        self._pieces, self._coarse, self._devices = pieces, coarse, devices
        self._on_device: dict[tuple[fx.Node, str], fx.Node] = {}  # a value on a device, by the value as first computed
        self._values: dict[fx.Node, fx.Node] = {}  # by nodes of the captured graph
        self._sizes: set[fx.Node] = set()  # those of them that are plain numbers, on no device
        tensors = pieces.chain.capture.example.call.write(self.graph)
        self._values.update((source, tensors[str(source.target)]) for source in pieces.placeholders)
        self._inputs = list(self._values.values())
        if pieces.computed:
            self._unpack(self.node("context", self._inputs, "context", 1), pieces.computed, first=0)

    def stem(self) -> fx.Node:
        """x_1; what segments read of the stem besides is unpacked."""
        besides = self._pieces.from_stem
        if not besides:
            return self.node("stem", self._inputs, "x_1", 1)
        outputs = self.node("stem", self._inputs, "stem", 1)
        x_1 = self.node(operator.getitem, (outputs, 0), "x_1", 1)
        self._unpack(outputs, besides, first=1)
        return x_1

    def adapter(self, j: int, x_1: fx.Node) -> fx.Node:
        """x_j = C^j(x), or C^j of the stem's output."""
        source = x_1 if self._pieces.plan.source == "stem" else self._raw_input()
        return self.node(f"adapters.C{j}", (source,), f"x_{j}", j)

    def segment(self, j: int, x: fx.Node, name: str) -> fx.Node:
        """g^j(x)."""
        return self.node(f"segments.g{j}", (x, *self._context(self._pieces.reads[j - 1])), name, j)

    def coarse_block(self, j: int, r: fx.Node) -> fx.Node:
        """F^j(r), which is g^{j+1}(r) where there is no block."""
        block = self._coarse[j]
        if block is None:
            return self.segment(j + 1, r, f"F_{j}")
        context = self._context(self._pieces.reads[j]) if takes_context(block) else []
        return self.node(f"coarse.F{j}", (r, *context), f"F_{j}", j + 1)

    def head(self, z: fx.Node) -> None:
        """h(z_n), the network's output."""
        context = self._context(self._pieces.chain.head.context)
        self.graph.output(self.node("head", (z, *context), "output_1", self._pieces.plan.n))

    def node(self, target: str | Callable[..., Any], args: Sequence[Any], name: str, j: int) -> fx.Node:
        """Call a submodule or a function on the device of segment j, with its arguments brought there."""
        op = "call_module" if isinstance(target, str) else "call_function"
        node = self.graph.create_node(op, target, tuple(self._to(argument, j) for argument in args), name=name)
        if self._devices is not None:
            self._on_device[node, str(self._devices[j - 1])] = node
        return node

    def _unpack(self, outputs: fx.Node, sources: Sequence[fx.Node], *, first: int) -> None:
        """Take context values out of a part's outputs, the first of which has this index; they count on from c_1."""
        number = 1 + (len(self._pieces.computed) if first else 0)
        for i, source in enumerate(sources):
            self._values[source] = value = self.node(operator.getitem, (outputs, first + i), f"c_{number + i}", 1)
            if "size" in source.meta:
                self._sizes.add(value)

    def _context(self, sources: Sequence[fx.Node]) -> list[fx.Node]:
        return [self._values[source] for source in sources]

    def _to(self, node: Any, j: int) -> Any:
        """The value on the device of segment j: one transfer a device."""
        if self._devices is None or not isinstance(node, fx.Node) or node in self._sizes:
            return node
        device = self._devices[j - 1]
        key = node, str(device)
        if key not in self._on_device:
            name = f"{node.name}_to_{j}"
            copied = self.graph.create_node("call_method", "to", (node, device), {"non_blocking": True}, name=name)
            self._on_device[key] = self._on_device[copied, str(device)] = copied
        return self._on_device[key]

    def _raw_input(self) -> fx.Node:
        """The network's one floating-point input."""
        return next(self._values[source] for source in self._pieces.placeholders if source.users)
