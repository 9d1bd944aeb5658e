"""Pieces, coarse blocks -> Equation: the graph of the network itself, equation (3) of the paper as code.

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
from collections.abc import Mapping, Sequence

import torch
from torch import fx, nn

from pararealize.coarse.copies import takes_context
from pararealize.tracing.operations import check_plain

from .pieces import Pieces

__all__ = ["Equation"]


class Equation:
    """The network's own graph: equation (3), with every transfer between devices written out.

    Args:
        pieces: graphs of stem, segments and head, and what they read.
        coarse: F^j by j = 1..n-1; ``None`` where it is g^{j+1} itself.
        devices: one for every segment, or ``None``: no transfers.

    Attributes:
        graph: the result.
    """

    def __init__(
        self, pieces: Pieces, coarse: Mapping[int, nn.Module | None], devices: Sequence[torch.device] | None
    ) -> None:
        self.pieces, self.coarse, self.devices = pieces, coarse, devices
        self.n = pieces.plan.n
        self.graph = fx.Graph()
        self._moved: dict[tuple[fx.Node, str], fx.Node] = {}
        self.inputs = [self._placeholder(node) for node in pieces.placeholders]
        for node, source in zip(self.inputs, pieces.placeholders, strict=True):
            check_plain(self.graph, source, node)
        self.known = self._context()
        self._write()

    def _placeholder(self, node: fx.Node) -> fx.Node:
        default = node.args[0] if node.args else ...
        if default is ...:
            return self.graph.placeholder(str(node.target))
        return self.graph.placeholder(str(node.target), default_value=default)

    def _call(self, target: str, args: Sequence[fx.Node], name: str, j: int) -> fx.Node:
        """Call a submodule on the device of segment j."""
        moved = tuple(self._to(argument, j) for argument in args)
        return self.graph.create_node("call_module", target, moved, name=name)

    def _to(self, node: fx.Node, j: int) -> fx.Node:
        """The value on the device of segment j: one transfer a device."""
        if self.devices is None or node in self._plain:
            return node
        device = self.devices[j - 1]
        key = node, str(device)
        if key not in self._moved:
            moved = self.graph.create_node(
                "call_method", "to", (node, device), {"non_blocking": True}, name=f"{node.name}_to_{j}"
            )
            self._moved[key] = self._moved[moved, str(device)] = moved
        return self._moved[key]

    @property
    def _plain(self) -> set[fx.Node]:
        """Inputs that are no tensors."""
        return {
            node for node, source in zip(self.inputs, self.pieces.placeholders, strict=True) if not _is_tensor(source)
        }

    def _here(self, node: fx.Node, j: int) -> fx.Node:
        """Say that a value lies on segment j's device already."""
        if self.devices is not None:
            self._moved[node, str(self.devices[j - 1])] = node
        return node

    def _context(self) -> dict[fx.Node, fx.Node]:
        """From captured nodes that segments read beside their input, to this graph's nodes."""
        pieces = self.pieces
        known = dict(zip(pieces.placeholders, self.inputs, strict=True))
        if pieces.computed:
            context = self._call("context", self.inputs, "context", 1)
            for i, node in enumerate(pieces.computed):
                value = self.graph.create_node("call_function", operator.getitem, (context, i), name=f"c_{i + 1}")
                known[node] = self._here(value, 1)
        return known

    def _write(self) -> None:
        pieces = self.pieces
        stem = self._here(self._call("stem", self.inputs, "stem" if pieces.from_stem else "x_1", 1), 1)
        if pieces.from_stem:
            names = ["x_1", *(f"c_{len(pieces.computed) + i + 1}" for i in range(len(pieces.from_stem)))]
            values = [
                self.graph.create_node("call_function", operator.getitem, (stem, i), name=name)
                for i, name in enumerate(names)
            ]
            for node, value in zip(pieces.from_stem, values[1:], strict=True):
                self.known[node] = self._here(value, 1)
            stem = self._here(values[0], 1)
        x = {1: stem}
        for j in range(2, self.n + 1):
            source = stem if pieces.plan.source == "stem" else self._raw_input()
            x[j] = self._here(self._call(f"adapters.C{j}", (source,), f"x_{j}", j), j)
        y = {j: self._here(self._segment(j, x[j], f"y_{j}"), j) for j in range(1, self.n + 1)}
        z = y[1]
        for j in range(1, self.n):
            r = self.graph.create_node("call_function", operator.sub, (self._to(z, j + 1), x[j + 1]), name=f"r_{j}")
            correction = self._coarse(j, self._here(r, j + 1))
            z = self.graph.create_node("call_function", operator.add, (y[j + 1], correction), name=f"z_{j + 1}")
            z = self._here(z, j + 1)
        context = [self.known[node] for node in pieces.chain.head.context]
        self.graph.output(self._call("head", (z, *context), "output_1", self.n))

    def _raw_input(self) -> fx.Node:
        """The network's one floating-point input."""
        return next(
            node
            for node, source in zip(self.inputs, self.pieces.placeholders, strict=True)
            if _is_tensor(source) and source.users
        )

    def _segment(self, j: int, x: fx.Node, name: str) -> fx.Node:
        context = [self.known[node] for node in self.pieces.reads[j - 1]]
        return self._call(f"segments.g{j}", (x, *context), name, j)

    def _coarse(self, j: int, r: fx.Node) -> fx.Node:
        block = self.coarse[j]
        if block is None:
            return self._segment(j + 1, r, f"F_{j}")
        context = [self.known[node] for node in self.pieces.reads[j]] if takes_context(block) else []
        return self._call(f"coarse.F{j}", (r, *context), f"F_{j}", j + 1)


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)
