"""Two traces of one network, in either mode and at two batch sizes -> one graph that follows both.

Both have the same calls in the same order, so that their nodes pair off. An argument that is a size is a symbol's
expression in both, and becomes arithmetic on sizes of tensors at hand (``size_nodes.py``). Where a plain argument
differs, what it follows is read from the difference: the mode of the module that the call stands in, or the batch size,

    a at batch b, a' at b + 1:   slope = a' - a,   argument = slope * batch + (a - slope * b)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import fx

from .expressions import substituted
from .regions import Region, deciding, in_both_modes
from .size_nodes import SizeWriter, scaled, size_of
from .sizes import SizeArgument, Sizes, layout_of
from .tracer import Trace
from .type_nodes import dtype_of, finfo_of, limit_of, source_of_type

__all__ = ["DifferentStructureError", "FollowsBatchError", "UnknownTypeError", "by_mode", "merge"]


def by_mode(training: bool, train: Any, evaluation: Any) -> Any:
    """The value that the mode asks for."""
    return train if training else evaluation


class DifferentStructureError(Exception):
    """The two traces did not do the same; ``paths`` names the smallest modules in which they part."""

    def __init__(self, paths: list[str]) -> None:
        super().__init__(", ".join(paths))
        self.paths = paths


class FollowsBatchError(Exception):
    """What differs between the two traces follows the batch size, in a way that is not known."""


class UnknownTypeError(Exception):
    """What differs between the two traces follows the element type, in a way that is not known."""


def merge(
    first: Trace,
    second: Trace,
    batch: int | None,
    empty: Callable[..., torch.Tensor],
    pins: Mapping[Any, int] = MappingProxyType({}),
) -> Trace:
    """Rewrite what differs between the traces, in the first one, to follow the mode or the batch size.

    Besides, the fake values of its nodes get the example's sizes in place of symbols; ``meta["sizes"]`` keeps these.

    Args:
        first: in train mode.
        second: in eval mode.
        batch: the batch size of the first, where the second has one more; ``None`` where both have the same, and
            integers follow the mode, too.
        empty: makes a tensor of a shape, strides, an element type and a device.
        pins: symbols that stand for one size only.

    Raises:
        DifferentStructureError: they did not make the same calls.
        UnknownTypeError: an element type differs that no tensor at hand has.
        FollowsBatchError: a size differs that no tensor at hand has.
    """
    ours, theirs = list(first.graph.nodes), list(second.graph.nodes)
    if [_kind(node) for node in ours] != [_kind(node) for node in theirs]:
        raise DifferentStructureError(_where_they_differ(ours, theirs))
    pairs = dict(zip(theirs, ours, strict=True))
    values = _Values(first.sizes, second.sizes, batch, empty, pins)
    for other, node in pairs.items():
        values.set(node, other)
        node.meta["memories"] = node.meta.get("memory"), other.meta.get("memory")
        node.meta["changed"] = node.meta.get("changes", frozenset()), other.meta.get("changes", frozenset())
        regions = (node.meta.get("region"), other.meta.get("region"))
        node.meta["region"] = None if None in regions else in_both_modes(*regions)
    writer = SizeWriter(first.graph, first.sizes, pins)
    for other, node in pairs.items():
        if node.op == "placeholder":
            continue
        with first.graph.inserting_before(node):
            rewrite = _Rewrite(node, pairs, batch, writer)
            node.args, node.kwargs = rewrite((node.args, node.kwargs), (other.args, other.kwargs))
    for node in first.graph.nodes:  # sizes and flags that were inserted are in no region, and may stand in any
        node.meta.setdefault("region", None)
    return first


class _Values:
    """Sets the fake values of nodes that two recordings gave, with plain sizes in place of symbols."""

    def __init__(
        self,
        first: Sizes,
        second: Sizes,
        batch: int | None,
        empty: Callable[..., torch.Tensor],
        pins: Mapping[Any, int],
    ) -> None:
        self.pins = pins
        self.first, self.second, self.empty = first, second, empty
        self.grown = dict(first.hints)
        for symbol, hint in second.hints.items():  # one sample more, whether or not it was recorded so
            follows = hint != first.hints[symbol] if batch is not None else symbol in first.rows
            self.grown[symbol] = first.hints[symbol] + follows
        self._examples: dict[Any, Any] = {}
        self._others: dict[Any, Any] = {}

    def set(self, node: fx.Node, other: fx.Node) -> None:
        """The value at the example's sizes, the other one with one sample more, and sizes as expressions."""
        ours, theirs = node.meta.get("val"), other.meta.get("val")
        layout, other_layout = (layout_of(v) if isinstance(v, torch.Tensor) else None for v in (ours, theirs))
        if layout is not None:
            sizes = layout[0]
            same = other_layout is not None and other_layout[0] == sizes
            node.meta["sizes"] = tuple(substituted(size, self.pins) if same else None for size in sizes)
        if "val" in node.meta:
            node.meta["val"] = self._at(ours, layout, self.first, self.first.hints, self._examples)
        node.meta["other"] = self._at(theirs, other_layout, self.second, self.grown, self._others)

    def _at(self, value: Any, layout: Any, recording: Sizes, sizes: Mapping[Any, int], plain: dict[Any, Any]) -> Any:
        """A value at plain sizes; a tensor is one of its own, whose layout is computed once for all that have it."""
        if layout is None:
            return recording.at(value, sizes, self.empty)
        if layout not in plain:
            tensor: torch.Tensor = recording.at(value, sizes, self.empty)
            plain[layout] = None if tensor is value else layout_of(tensor)
            return tensor
        return value if plain[layout] is None else self.empty(*plain[layout])


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

    def __init__(self, node: fx.Node, pairs: dict[fx.Node, fx.Node], batch: int | None, writer: SizeWriter) -> None:
        self.graph, self.node, self.pairs, self.batch, self.writer = node.graph, node, pairs, batch, writer

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
        if isinstance(a, SizeArgument) or isinstance(b, SizeArgument):
            return self._symbolic(a, b)
        if type(a) is type(b) and (a == b or (a != a and b != b)):  # a NaN is not equal to itself
            return a
        if (source := self._of_type(a, b)) is not None:
            return source
        if self.batch is not None and type(a) is int and type(b) is int:
            return self._size(a, b, self.batch)
        return self._mode(a, b)

    def _innermost(self) -> str:
        """The innermost module, not itself a leaf, that the node stands in."""
        stack = list(self.node.meta.get("nn_module_stack", {"": None}))
        return str(stack[-2] if self.node.op == "call_module" and len(stack) > 1 else stack[-1])

    def _mode(self, train: Any, evaluation: Any) -> Any:
        if self.batch is not None and self.writer.reads_rows and not isinstance(train, bool | fx.Node):
            raise FollowsBatchError
        path = self.node.meta.get("flag")  # which its arguments were chosen by
        if path is None:
            path = self._innermost()
        flag = self.graph.get_attr(f"{path}.training" if path else "training")
        if train is True and evaluation is False:
            return flag
        return self.graph.call_function(by_mode, (flag, train, evaluation))

    def _of_type(self, a: Any, b: Any) -> fx.Node | None:
        """What reads an element type, or a number that belongs to one, which differs between the recordings."""
        if isinstance(a, torch.dtype) and isinstance(b, torch.dtype):
            source = source_of_type(self.node, a, b)
            if source is None:
                raise UnknownTypeError
            return self.graph.call_function(dtype_of, (source,))
        for dtype, read in self.node.meta.get("types", {}).items() if type(a) is float and type(b) is float else ():
            other = getattr(read.meta.get("other"), "dtype", dtype)
            if other != dtype and (limit := limit_of(a, dtype, b, other)) is not None:
                return self.graph.call_function(finfo_of, (read, limit))
        return None

    def _symbolic(self, a: Any, b: Any) -> Any:
        ours, theirs = self.writer.write(a, self.node), self.writer.write(b, self.node)
        same = self.writer.simplified(a) == self.writer.simplified(b)
        return ours if same else self._mode(ours, theirs)

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
        raise FollowsBatchError


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()
