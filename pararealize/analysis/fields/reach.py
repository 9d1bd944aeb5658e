"""The values that receptive-field rules work on: the reach of a tensor, and the call of an operation.

A *reach* says, for each spatial axis of a block's input, at which dimension of a tensor within the block it now stands
and which interval of the input one position there reads. A rule (``rules_convolution.py``, ``rules_shape.py``) is a
function from a :class:`Call`, which knows the reach of every operand, to the reach of the result; what rules have in
common (unite branches, follow moved dimensions, slide a kernel) stands here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

Number = int | Fraction


def plain(value: Number) -> Number:
    """The same number, as an ``int`` where it is one."""
    return int(value) if value == int(value) else value


@dataclass(frozen=True, slots=True)
class Interval:
    """Output position ``o`` of one dimension reads ``start + stride * o`` to ``start + stride * o + size - 1``."""

    size: Number = 1
    stride: Number = 1
    start: Number = 0

    def then(self, later: "Interval") -> "Interval":
        """What a later operation that reads ``later`` of this one's output reads of this one's input."""
        size = self.size + (later.size - 1) * self.stride
        start = self.start + later.start * self.stride
        return Interval(plain(size), plain(self.stride * later.stride), plain(start))


@dataclass(frozen=True, slots=True)
class Axis:
    """Where one spatial axis of the input has gone: the tensor dimension that follows it, and the interval it reads."""

    dim: int | None  # None: every position of this tensor may read the whole axis
    interval: Interval = Interval()

    def through(self, interval: Interval) -> "Axis":
        """The axis after one more operation that reads ``interval`` of it."""
        return Axis(self.dim, self.interval.then(interval))


EVERYWHERE = Axis(None)
Reach = tuple[Axis, ...]  # one axis for each spatial axis of the input


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The shape of a node's value, or of the first tensor where the value is a tuple of them."""
    tensors = [leaf for leaf in pytree.tree_leaves(node.meta["val"]) if isinstance(leaf, torch.Tensor)]
    return tuple(int(size) for size in tensors[0].shape)


@dataclass(frozen=True, slots=True)
class Call:
    """One node with what its rule may ask: the module, the arguments, shapes, and the reach of each operand."""

    node: fx.Node
    module: nn.Module | None
    reaches: Mapping[fx.Node, Reach]

    @property
    def operands(self) -> list[fx.Node]:
        """The arguments that depend on the input of the block."""
        return [node for node in self.node.all_input_nodes if node in self.reaches]

    @property
    def source(self) -> fx.Node:
        """The first operand: the tensor that the operation is about."""
        return self.operands[0]

    @property
    def reach(self) -> Reach:
        """The reach of that tensor."""
        return self.reaches[self.source]

    @property
    def rank(self) -> int:
        """How many dimensions that tensor has."""
        return len(shape_of(self.source))

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or name, sizes as the example has them; of a module, its attribute of that name."""
        if self.module is not None:
            return getattr(self.module, name, default)
        given = self.node.args[position] if position < len(self.node.args) else self.node.kwargs.get(name, default)
        return fx.map_arg(given, _number)

    def dims(self, position: int, name: str, default: Any = None) -> tuple[int, ...]:
        """The dimensions of that tensor that an argument names, counted from the front."""
        return dims_from_front(self.argument(position, name, default), self.rank)


def _number(node: fx.Node) -> Any:
    """The number that a node gives with the example's sizes, such as how much to pad; the node where it gives none."""
    value = node.meta.get("val")
    return value if isinstance(value, int | float) else node


Rule = Callable[[Call], Reach]


# ---------------------------------------------------------------------------------------------------------- helpers


def union(reaches: Iterable[Reach]) -> Reach:
    """The smallest intervals that hold those of every branch; global where branches stand at other dims or strides."""

    def join(axes: tuple[Axis, ...]) -> Axis:
        if any(axis.dim is None for axis in axes) or len({(axis.dim, axis.interval.stride) for axis in axes}) > 1:
            return EVERYWHERE
        start = min(axis.interval.start for axis in axes)
        stop = max(axis.interval.start + axis.interval.size for axis in axes)
        return Axis(axes[0].dim, Interval(stop - start, axes[0].interval.stride, start))

    return tuple(join(axes) for axes in zip(*reaches, strict=True))


def follow(reach: Reach, moves: Mapping[int, int]) -> Reach:
    """Each axis at the dimension where ``moves`` puts it; global where it has none."""
    return tuple(
        Axis(moves[axis.dim], axis.interval) if axis.dim is not None and axis.dim in moves else EVERYWHERE
        for axis in reach
    )


def mix(reach: Reach, dims: Iterable[int]) -> Reach:
    """Global along ``dims``, unchanged elsewhere."""
    return slide(reach, dict.fromkeys(dims))


def slide(reach: Reach, intervals: Mapping[int, Interval | None]) -> Reach:
    """A kernel moves along each dimension of ``intervals`` and reads so much of it; None reads the whole dimension."""

    def moved(axis: Axis) -> Axis:
        if axis.dim is None or axis.dim not in intervals:
            return axis
        interval = intervals[axis.dim]
        return EVERYWHERE if interval is None else axis.through(interval)

    return tuple(moved(axis) for axis in reach)


def broadcast(reach: Reach, shape: Sequence[int], target: Sequence[int]) -> Reach:
    """The reach after broadcasting ``shape`` to ``target``; global where one position serves many."""
    shift = len(target) - len(shape)
    moves = {d: d + shift for d, size in enumerate(shape) if size == target[d + shift] or size != 1}
    return follow(reach, moves)


def per_axis(value: Any, count: int) -> tuple[Any, ...]:
    """``count`` values from one value, a sequence of one, or a sequence of ``count``."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return values * count if len(values) == 1 else values


def dims_from_front(dims: Any, rank: int) -> tuple[int, ...]:
    """Dimensions counted from the front; None means all."""
    return tuple(range(rank)) if dims is None or dims == () else tuple(int(d) % rank for d in per_axis(dims, 1))


def integers(args: Iterable[Any]) -> tuple[int, ...]:
    """``f(x, 0, 2, 1)`` and ``f(x, (0, 2, 1))`` alike: the integers."""
    return tuple(leaf for arg in args for leaf in per_axis(arg, 1) if isinstance(leaf, int))


def operation_name(node: fx.Node) -> str:
    """The name that a function, its method and its in-place form share: ``torch.relu_`` -> ``relu``."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return str(name).strip("_")
