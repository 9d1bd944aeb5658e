"""Two traces of one network, in either mode and at two batch sizes -> one graph that follows both.

Both have the same calls in the same order, so that their nodes pair off; where an argument differs, what it follows is
read from the difference: the mode of the module that the call stands in, or the size of a tensor,

    a at batch b, a' at b + 1:   slope = a' - a,   argument = slope * batch + (a - slope * b)
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from pararealize.errors import CaptureError

from .regions import Region, deciding, in_both_modes
from .tracer import Trace

__all__ = ["DifferentStructureError", "by_mode", "merge", "scaled", "size_of"]


def by_mode(training: bool, train: Any, evaluation: Any) -> Any:
    """The value that the mode asks for."""
    return train if training else evaluation


def size_of(tensor: torch.Tensor, axis: int) -> int:
    """The size of a tensor along an axis; within a piece of a network, of that piece's own input."""
    return tensor.shape[axis]


class DifferentStructureError(Exception):
    """The two traces did not do the same; ``paths`` names the smallest modules in which they part."""

    def __init__(self, paths: list[str]) -> None:
        super().__init__(", ".join(paths))
        self.paths = paths


def merge(first: Trace, second: Trace, batch: int | None) -> Trace:
    """Rewrite what differs between the traces, in the first one, to follow the mode or the batch size.

    Args:
        first: in train mode.
        second: in eval mode.
        batch: the batch size of the first, where the second has one more; ``None`` where both have the same, and
            integers follow the mode, too.

    Raises:
        DifferentStructureError: they did not make the same calls.
        CaptureError: a size differs that no tensor at hand has.
    """
    ours, theirs = list(first.graph.nodes), list(second.graph.nodes)
    if [_kind(node) for node in ours] != [_kind(node) for node in theirs]:
        raise DifferentStructureError(_where_they_differ(ours, theirs))
    pairs = dict(zip(theirs, ours, strict=True))
    for other, node in pairs.items():
        node.meta["other"] = other.meta.get("val")
        node.meta["memories"] = node.meta.get("memory"), other.meta.get("memory")
        node.meta["changed"] = node.meta.get("changes", frozenset()), other.meta.get("changes", frozenset())
        regions = (node.meta.get("region"), other.meta.get("region"))
        node.meta["region"] = None if None in regions else in_both_modes(*regions)
        if node.op == "placeholder":
            continue
        with first.graph.inserting_before(node):
            node.args, node.kwargs = _Rewrite(node, pairs, batch)((node.args, node.kwargs), (other.args, other.kwargs))
    for node in first.graph.nodes:  # sizes and flags that were inserted are in no region, and may stand in any
        node.meta.setdefault("region", None)
    return first


def _kind(node: fx.Node) -> tuple[str, Any, Region]:
    return node.op, node.target, deciding(node.meta.get("region") or ())


def _where_they_differ(ours: list[fx.Node], theirs: list[fx.Node]) -> list[str]:
    """The smallest modules whose sequences of calls differ."""

    def calls(nodes: list[fx.Node]) -> dict[str, list[Any]]:
        by_module: dict[str, list[Any]] = {}
        for node in nodes:
            for path in {"", *node.meta.get("nn_module_stack", {})}:
                by_module.setdefault(path, []).append(_kind(node))
        return by_module

    a, b = calls(ours), calls(theirs)
    leaves = {node.target for node in (*ours, *theirs) if node.op == "call_module"}
    paths = [path for path in {**a, **b} if a.get(path) != b.get(path) and path not in leaves]
    return [p for p in paths if not any(q != p and q.startswith(f"{p}." if p else "") for q in paths)]


class _Rewrite:
    """Walks the arguments of one node in both recordings at once and replaces constants that differ."""

    def __init__(self, node: fx.Node, pairs: dict[fx.Node, fx.Node], batch: int | None) -> None:
        self.graph, self.node, self.pairs, self.batch = node.graph, node, pairs, batch

    def __call__(self, a: Any, b: Any) -> Any:
        if isinstance(a, fx.Node) or isinstance(b, fx.Node):
            if not isinstance(b, fx.Node) or self.pairs[b] is not a:
                raise DifferentStructureError([self._innermost()])
            return a
        if isinstance(a, tuple | list) and type(a) is type(b) and len(a) == len(b):
            return type(a)(self(x, y) for x, y in zip(a, b, strict=True))
        if isinstance(a, dict) and isinstance(b, dict) and list(a) == list(b):
            return {key: self(a[key], b[key]) for key in a}
        if isinstance(a, slice) and isinstance(b, slice):
            return slice(self(a.start, b.start), self(a.stop, b.stop), self(a.step, b.step))
        if type(a) is type(b) and (a == b or (a != a and b != b)):  # a NaN is not equal to itself
            return a
        if self.batch is not None and type(a) is int and type(b) is int:
            return self._size(a, b, self.batch)
        return self._mode(a, b)

    def _innermost(self) -> str:
        """The innermost module, not itself a leaf, that the node stands in."""
        stack = list(self.node.meta.get("nn_module_stack", {"": None}))
        return str(stack[-2] if self.node.op == "call_module" and len(stack) > 1 else stack[-1])

    def _mode(self, train: Any, evaluation: Any) -> Any:
        path = self._innermost()
        flag = self.graph.get_attr(f"{path}.training" if path else "training")
        if train is True and evaluation is False:
            return flag
        return self.graph.call_function(by_mode, (flag, train, evaluation))

    def _size(self, a: int, b: int, batch: int) -> Any:
        """``a = slope * batch + offset`` with the batch read from one of the node's own tensors, or from the input.

        A size that is a multiple of the batch will do (that of a tensor with ``per_sample`` rows for each sample).
        """
        slope, offset = b - a, a - (b - a) * batch
        for tensor in (*self.node.all_input_nodes, *self.graph.find_nodes(op="placeholder")):
            shapes = _shape(tensor.meta.get("val")), _shape(tensor.meta.get("other"))
            for axis, (m, n) in enumerate(zip(*shapes, strict=False)):
                if n == m or m != (n - m) * batch:
                    continue
                size = self.graph.call_function(size_of, (tensor, axis))
                return size if (m, n) == (a, b) else scaled(self.graph, size, n - m, slope, offset)
        raise CaptureError(f"cannot follow the batch size at {self.node.name} ({self._innermost()}): {a} became {b}")


def scaled(graph: fx.Graph, size: fx.Node, per_sample: int, slope: int, offset: int) -> fx.Node:
    """``slope * (size / per_sample) + offset``, with no more calls than it takes."""
    if per_sample != 1:
        size = graph.call_function(operator.floordiv, (size, per_sample))
    if slope != 1:
        size = graph.call_function(operator.mul, (size, slope))
    return graph.call_function(operator.add, (size, offset)) if offset else size


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()
