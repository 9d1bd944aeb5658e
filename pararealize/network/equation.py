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

With several windows the same stands once for each, with two indices. Window m + 1 begins with what window m ends with,
w_m, in the place of the stem's output:

    w_1 = y_1_2 + self.coarse.F1_1(r_1_1)
    x_2_2 = self.adapters.C2_2(w_1)
    y_2_1 = self.segments.g2_1(w_1)
    y_2_2 = self.segments.g2_2(x_2_2)
    ...

Where segments have an output correction K^{m,j}, ``v_2_1 = self.coarse.K2_1(w_1, y_2_1)`` stands in the place of y_2_1.

Source: Lee, Lee and Park, "A Parareal Architecture for Very Deep Convolutional Neural Network".
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from pararealize.coarse.copies import takes_context
from pararealize.coarse.spec import CoarsePlan, NumberedRow
from pararealize.plan.spec import SegmentPlan, Window

from .pieces import Pieces

__all__ = ["write_equation"]


def write_equation(
    pieces: Pieces, coarse: Mapping[str, nn.Module | None], devices: Sequence[torch.device] | None
) -> fx.Graph:
    """The network's own graph: equation (3), with every transfer between devices written out.

    Args:
        pieces: graphs of stem, segments and head, and what they read.
        coarse: the F^{m,j} by name; ``None`` where it is g^{m,j+1} itself.
        devices: n of them, or ``None``: no transfers.
    """
    writer = _EquationWriter(pieces, coarse, devices)
    w = writer.stem()
    for window in pieces.plan.windows:
        w = writer.window(window, w)
    writer.head(w)
    return writer.graph


class _EquationWriter:
    """Appends the calls of parts to a graph, and a transfer wherever a value is not on the device that reads it.

    Attributes:
        graph: the graph that is written.
    """

    def __init__(
        self, pieces: Pieces, coarse: Mapping[str, nn.Module | None], devices: Sequence[torch.device] | None
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
        x_1 = _value("x", self._pieces.plan.segments[0])
        if not besides:
            return self.node("stem", self._inputs, x_1, 1)
        outputs = self.node("stem", self._inputs, "stem", 1)
        first = self.node(operator.getitem, (outputs, 0), x_1, 1)
        self._unpack(outputs, besides, first=1)
        return first

    def window(self, window: Window, w: fx.Node) -> fx.Node:
        """w_m, from w_{m-1}: equations (2) and (3) for the segments of one window."""
        x = {1: w}
        source = self._raw_input() if window.adapters and window.adapters[0].source == "input" else w
        for row in window.adapters:
            x[row.j] = self.node(f"adapters.{row.name}", (source,), _value("x", row), window.offset + row.j)
        y = {row.j: self._segment(window, row, x[row.j], _value("y", row)) for row in window.segments}
        for K in window.corrections:
            arguments, home = (x[K.j], y[K.j]), window.offset + K.j
            y[K.j] = self.node(f"coarse.{K.name}", arguments, _value("v", K), home)
        z = y[1]
        for F, segment in zip(window.coarse_blocks, window.segments[1:], strict=True):
            home = window.offset + segment.j
            r = self.node(operator.sub, (z, x[segment.j]), _value("r", F), home)
            is_end = segment.m > 0 and segment.j == window.n
            name = f"w_{segment.m}" if is_end else _value("z", segment)
            z = self.node(operator.add, (y[segment.j], self._coarse_block(window, F, segment, r)), name, home)
        return z

    def _segment(self, window: Window, row: SegmentPlan, x: fx.Node, name: str) -> fx.Node:
        """g^{m,j}(x)."""
        context = self._context(self._pieces.reads[row.name])
        return self.node(f"segments.{row.name}", (x, *context), name, window.offset + row.j)

    def _coarse_block(self, window: Window, row: CoarsePlan, segment: SegmentPlan, r: fx.Node) -> fx.Node:
        """F^{m,j}(r), which is g^{m,j+1}(r) where there is no block."""
        block = self._coarse[row.name]
        if block is None:
            return self._segment(window, segment, r, _value("F", row))
        context = self._context(self._pieces.reads[segment.name]) if takes_context(block) else []
        return self.node(f"coarse.{row.name}", (r, *context), _value("F", row), window.offset + segment.j)

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


def _value(letter: str, row: NumberedRow) -> str:
    """What a value of a part is called in the code: ``y_2_3``, or ``y_3`` in a network of one window."""
    return f"{letter}_{row.m}_{row.j}" if row.m else f"{letter}_{row.j}"
