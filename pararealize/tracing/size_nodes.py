"""Sizes that a graph computes: nodes that read them from tensors, and arithmetic on these.

A size is read from a tensor that its reader reads anyway, where one has it; else from the network's inputs. So a piece
of the network computes most of its sizes from its own activation, whatever its place.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from .expressions import UnknownFunctionError, plain_number, rebuild, substituted, symbols_of, write
from .sizes import Decision, Sizes, expression_of

__all__ = ["SizeWriter", "is_told", "scaled", "size_from", "size_of", "tensors_of_size"]


def size_of(tensor: torch.Tensor, axis: int) -> int:
    """The size of a tensor along an axis; within a piece of a network, of that piece's own input."""
    return tensor.shape[axis]


class SizeWriter:
    """Writes nodes for sizes into a graph.

    Args:
        graph: a recording; new nodes stand where it is being written.
        pins: symbols that stand for one size only.
        sizes: its symbols. A size that no graph can compute becomes a plain number, and a decision of theirs.
    """

    def __init__(self, graph: fx.Graph, sizes: Sizes, pins: Mapping[Any, int]) -> None:
        self.sizes, self.pins = sizes, pins
        self.reads_rows = any(
            decision.is_value and sizes.rows.intersection(symbols_of(decision.expression))
            for decision in sizes.decisions.values()
        )
        self.inputs = [node for node in graph.nodes if node.op == "placeholder"]

    def simplified(self, size: Any) -> Any:
        """The expression of a size, without symbols that stand for one size only."""
        return substituted(expression_of(size), self.pins)

    def write(self, size: Any, reader: fx.Node) -> Any:
        """What stands for a size among the arguments of ``reader``."""
        expression = self.simplified(size)
        if not symbols_of(expression):
            return plain_number(expression)
        for tensors in (reader.all_input_nodes, self.inputs):
            node = size_from(expression, tensors, self.sizes)
            if node is not None:
                return node
        answer = self.sizes.value(expression, self.sizes.hints)
        line = f"{reader.name} reads it in a way that no graph can compute"
        self.sizes.decisions.setdefault(expression, Decision(expression, answer, line))
        return answer


def size_from(
    expression: Any,
    tensors: Iterable[fx.Node],
    sizes: Sizes | None = None,
    copies: Callable[[fx.Node], fx.Node] | None = None,
) -> fx.Node | None:
    """Write a size as arithmetic on sizes of the tensors; ``None`` where they do not tell it.

    Args:
        expression: the size.
        tensors: nodes whose ``meta["sizes"]`` are expressions.
        sizes: tells the size at the example's sizes.
        copies: the node to read in place of a tensor's own.
    """
    at_hand = _at_hand(tensors)
    solution = rebuild(expression, [size for _, _, size in at_hand])
    if solution is None:
        return None
    result, symbols = solution
    hint = None if sizes is None else sizes.value(expression, sizes.hints)
    nodes: dict[Any, fx.Node] = {}
    graph: fx.Graph | None = None

    def call(function: Callable[..., Any], arguments: Sequence[Any]) -> fx.Node:
        assert graph is not None
        node = graph.call_function(function, tuple(arguments))
        node.meta["size"] = None
        return node

    for symbol, i in sorted(symbols.items(), key=lambda item: item[1]):
        tensor, axis, size = at_hand[i]
        tensor = tensor if copies is None else copies(tensor)
        graph = tensor.graph
        nodes[symbol] = call(size_of, (tensor, axis))
        nodes[symbol].meta["size"] = size
    try:
        node = write(result, nodes, call)
    except UnknownFunctionError:
        return None
    if isinstance(node, fx.Node):
        node.meta["size"] = expression
        if hint is not None:
            node.meta["val"] = hint
    return node  # type: ignore[no-any-return]


def is_told(expression: Any, tensors: Iterable[fx.Node]) -> bool:
    """Whether a size can be computed from sizes of the tensors."""
    return rebuild(expression, [size for _, _, size in _at_hand(tensors)]) is not None


def _at_hand(tensors: Iterable[fx.Node]) -> list[tuple[fx.Node, int, Any]]:
    sizes = ((node, axis, size) for node in tensors for axis, size in enumerate(node.meta.get("sizes", ())))
    return [each for each in sizes if symbols_of(each[2])]


def tensors_of_size(node: fx.Node) -> list[fx.Node]:
    """The tensors whose sizes a size is computed from."""
    tensors: dict[fx.Node, None] = {}
    stack = [node]
    while stack:
        for argument in stack.pop().all_input_nodes:
            if "size" in argument.meta:
                stack.append(argument)
            else:
                tensors[argument] = None
    return list(tensors)


def scaled(graph: fx.Graph, size: fx.Node, per_sample: int, slope: int, offset: int) -> fx.Node:
    """``slope * (size / per_sample) + offset``, with no more calls than it takes."""
    if per_sample != 1:
        size = graph.call_function(operator.floordiv, (size, per_sample))
    if slope != 1:
        size = graph.call_function(operator.mul, (size, slope))
    return graph.call_function(operator.add, (size, offset)) if offset else size
