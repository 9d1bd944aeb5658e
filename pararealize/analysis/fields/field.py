"""BlockChain -> Fields: the input positions that one output position of a block, or of a run of blocks, reads.

The rule of each operation stands in one of two tables (``rules.py``). What is in neither has no rule and stops
with a :class:`FieldError`, but only once someone asks for the field of a run of blocks that holds it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial, reduce

import torch
from torch import fx, nn
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.utils import _pytree as pytree

from pararealize.analysis.blocks import Block, BlockChain
from pararealize.analysis.space import Space
from pararealize.argument_types import typed_arguments
from pararealize.errors import CutError, FieldError

from .reach import EVERYWHERE, Axis, Call, Interval, Number, Reach, Rule, operation_name, plain, shape_of, union
from .rules import MODULES, NO_VALUES, OPERATIONS, POINTWISE_CLASSES
from .rules_shape import everything, pointwise

__all__ = ["Fields", "ReceptiveField", "field_of_block", "receptive_field", "receptive_fields"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceptiveField:
    """The interval of input positions that one output position reads, along each spatial axis.

    Output position ``o`` of an axis reads the input positions from ``start + stride * o`` to
    ``start + stride * o + size - 1``, cut off at the borders of the map. For a run of operations with kernels ``k_i``,
    strides ``s_i``, dilations ``d_i`` and paddings ``p_i``::

        size = 1 + sum_i d_i (k_i - 1) S_i,    stride = prod_i s_i,    start = -sum_i p_i S_i,    S_i = prod_{l<i} s_l

    Attributes:
        size: input positions, per axis; ``None`` for global (any output may read the whole axis). A fraction where the
            stride is one, as after a transposed convolution.
        stride: input positions from one output position to the next.
        start: the first input position that output position 0 reads; negative within the padding.

    Source: Araujo, Norris, Sim, "Computing receptive fields of convolutional neural networks", Distill 2019.

    Example:
        >>> conv = ReceptiveField(size=(3, 3), stride=(2, 2), start=(-1, -1))
        >>> print(conv.then(conv))
        7×7, stride 4×4, start -3×-3
    """

    size: tuple[Number | None, ...]
    stride: tuple[Number, ...]
    start: tuple[Number, ...]

    @classmethod
    def everywhere(cls, axes: int) -> ReceptiveField:
        """A global field over a map of that many axes."""
        return cls(size=(None,) * axes, stride=(1,) * axes, start=(0,) * axes)

    @property
    def is_global(self) -> bool:
        """Whether every axis is global; true of a vector, which has no axes."""
        return all(size is None for size in self.size)

    def within(self, extent: Sequence[int]) -> tuple[Number, ...]:
        """The field cut off at a map of that extent: ``min(size, extent)``, the extent where it is global."""
        return tuple(e if size is None else min(size, e) for size, e in zip(self.size, extent, strict=True))

    def then(self, later: ReceptiveField) -> ReceptiveField:
        """The field of this piece followed by ``later``, in positions of this piece's input.

        Where the two differ in their number of axes (a map that becomes tokens), the result is global.
        """
        if len(self.size) != len(later.size):
            return ReceptiveField.everywhere(len(self.size))
        axes: list[tuple[Number | None, Number, Number]] = []
        for (s, *first), (t, *second) in zip(self._by_axis(), later._by_axis(), strict=True):
            both = Interval(s or 1, *first).then(Interval(t or 1, *second))
            known = s is not None and t is not None
            axes.append((both.size if known else None, both.stride, both.start if known else 0))
        return _from_axes(axes)

    def _by_axis(self) -> Iterator[tuple[Number | None, Number, Number]]:
        return zip(self.size, self.stride, self.start, strict=True)

    def __str__(self) -> str:
        if self.is_global:
            return "global"
        size = "×".join("all" if s is None else str(s) for s in self.size)
        stride, start = ("×".join(map(str, values)) for values in (self.stride, self.start))
        return f"{size}, stride {stride}, start {start}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """The receptive field of every block of a chain, in order; an error in the place of one that has no rule."""

    names: tuple[str, ...]
    blocks: tuple[ReceptiveField | FieldError, ...]

    def of(self, first: int, last: int) -> ReceptiveField:
        """The field of blocks ``first`` to ``last`` (0-based, inclusive), in positions of block ``first``'s input.

        Raises:
            FieldError: a block of the run holds an operation without a rule.
            CutError: there is no such run of blocks.
        """
        if not 0 <= first <= last < len(self.blocks):
            raise CutError(f"there are no blocks {first} to {last}: the chain has blocks 0 to {len(self.blocks) - 1}")
        run = self.blocks[first : last + 1]
        unknown = dict.fromkeys(str(field) for field in run if isinstance(field, FieldError))
        if unknown:
            raise FieldError("\n".join(unknown))
        return reduce(ReceptiveField.then, (field for field in run if isinstance(field, ReceptiveField)))

    def __str__(self) -> str:
        return "\n".join(f"{name}: {field}" for name, field in zip(self.names, self.blocks, strict=True))


@typed_arguments(FieldError)
def receptive_fields(chain: BlockChain) -> Fields:
    """The receptive field of every block; interchangeable blocks are looked at once.

    Example:
        >>> import torch
        >>> from pararealize import capture, find_blocks
        >>> from pararealize.models import resnet20
        >>> fields = receptive_fields(find_blocks(capture(resnet20(), torch.randn(2, 3, 32, 32))))
        >>> print(fields.of(0, 1))
        9×9, stride 1×1, start -4×-4
    """
    blocks = chain.for_each_block(partial(_field_or_error, chain))
    return Fields(names=tuple(block.name for block in chain.blocks), blocks=blocks)


def _field_or_error(chain: BlockChain, block: Block) -> ReceptiveField | FieldError:
    try:
        return field_of_block(chain, block)
    except FieldError as error:
        return error


def field_of_block(chain: BlockChain, block: Block) -> ReceptiveField:
    """The receptive field of one block.

    Raises:
        FieldError: an operation has no rule.
    """
    return receptive_field(
        chain.capture.graph_module,
        block.nodes,
        enter=block.input,
        leave=block.output,
        enter_axes=_axes(block.x),
        leave_axes=_axes(block.y),
        opaque=chain.capture.opaque,
    )


def _axes(space: Space) -> tuple[int, ...]:
    """The dimensions of a batch of that space that are spatial."""
    return tuple(d + 1 for d in range(len(space.shape)) if d != space.channel)


def receptive_field(
    root: nn.Module,
    nodes: Sequence[fx.Node],
    *,
    enter: fx.Node,
    leave: fx.Node,
    enter_axes: Sequence[int],
    leave_axes: Sequence[int],
    opaque: Collection[str] = (),
) -> ReceptiveField:
    """The receptive field of a piece of a graph, one rule an operation.

    Args:
        root: the module that the graph's ``call_module`` nodes name submodules of.
        nodes: the piece's nodes in execution order; each holds its value, a fake tensor, as ``node.meta["val"]``.
        enter: the node where the piece begins.
        leave: the node where it ends.
        enter_axes: the spatial dimensions of the first one's value: ``(2, 3)`` for (batch, channels, height, width).
        leave_axes: those of the last one's.
        opaque: qualified names of modules to treat as global.

    Where two branches join, the field is their union; at different strides it is global. Batch norm counts as
    pointwise, as in ``eval()``.

    Raises:
        FieldError: an operation has no rule.
    """
    reaches: dict[fx.Node, Reach] = {enter: tuple(map(Axis, enter_axes))}
    for node in nodes:
        if node is not enter and any(operand in reaches for operand in node.all_input_nodes) and _holds_values(node):
            reaches[node] = _reach(root, node, reaches, opaque)
            _change_in_place(node, reaches)
    return _as_field(reaches.get(leave, ()), shape_of(enter), shape_of(leave), enter_axes, leave_axes)


def _holds_values(node: fx.Node) -> bool:
    """Whether a node gives tensors that depend on the values of its arguments, not just on their shapes."""
    if node.op != "call_module" and operation_name(node) in NO_VALUES:
        return False
    return any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(node.meta.get("val")))


def _reach(root: nn.Module, node: fx.Node, reaches: Mapping[fx.Node, Reach], opaque: Collection[str]) -> Reach:
    """The reach of one node by its rule."""
    module = root.get_submodule(str(node.target)) if node.op == "call_module" else None
    rule = _rule(node, module, opaque)
    try:
        return rule(Call(node, module, reaches))
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise FieldError(f"{_without_rule(node, module)} (its rule cannot read these arguments: {error})") from error


def _rule(node: fx.Node, module: nn.Module | None, opaque: Collection[str]) -> Rule:
    # weight_norm and its like give a module a class of its own, which reads as the one it was
    kind = type_before_parametrizations(module) if module is not None else None
    if kind is None:
        rule = OPERATIONS.get(operation_name(node))
    elif kind.__name__ in POINTWISE_CLASSES:
        rule = pointwise
    elif str(node.target) in opaque or not kind.__module__.startswith("torch.nn"):
        rule = everything
    else:
        rule = MODULES.get(kind)
    if rule is None:
        raise FieldError(_without_rule(node, module))
    return rule


def _without_rule(node: fx.Node, module: nn.Module | None) -> str:
    """``no receptive-field rule for torch.roll (node layer3.shift)``, and what to do about it."""
    if module is not None:
        what, where, owner = f"torch.nn.{type(module).__name__}", str(node.target), type(module).__name__
    else:
        stack = list((node.meta.get("nn_module_stack") or {}).items())
        path, entry = stack[-1] if stack else ("", None)
        kind = entry[1] if isinstance(entry, tuple) else entry
        where, owner = str(path) or node.name, kind.__name__ if path and isinstance(kind, type) else ""
        spelt = operation_name(node)
        what = f"torch.{spelt}" if getattr(torch, spelt, None) is not None else f"{spelt}()"
    remedy = (
        f"pass leaf_modules=[{owner}]" if owner else "put it into a module and pass leaf_modules=[that module's class]"
    )
    return f"no receptive-field rule for {what} (node {where}); {remedy} to treat it as global"


def _change_in_place(node: fx.Node, reaches: dict[fx.Node, Reach]) -> None:
    """Later readers of a tensor that ``node`` changed in place read its new value."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place = node.op != "call_module" and ((name.endswith("_") and not name.endswith("__")) or name == "setitem")
    changed = node.args[0] if node.args else None
    if in_place and isinstance(changed, fx.Node):
        same = changed in reaches and shape_of(changed) == shape_of(node)
        reaches[changed] = (
            union([reaches[changed], reaches[node]]) if same else tuple(EVERYWHERE for _ in reaches[node])
        )


def _as_field(
    reach: Reach, shape: Sequence[int], target: Sequence[int], enter_axes: Sequence[int], leave_axes: Sequence[int]
) -> ReceptiveField:
    """The reach of the output as sizes, strides and starts; global where an axis did not end in its own place."""
    if len(enter_axes) != len(leave_axes) or len(reach) != len(enter_axes):
        return ReceptiveField.everywhere(len(enter_axes))
    axes: list[tuple[Number | None, Number, Number]] = []
    for axis, before, after in zip(reach, enter_axes, leave_axes, strict=True):
        if axis.dim == after:
            axes.append((axis.interval.size, plain(axis.interval.stride), axis.interval.start))
        else:
            axes.append((None, plain(Fraction(shape[before], target[after])), 0))
    return _from_axes(axes)


def _from_axes(axes: Sequence[tuple[Number | None, Number, Number]]) -> ReceptiveField:
    """The field of these sizes, strides and starts, one triple an axis."""
    return ReceptiveField(
        size=tuple(size for size, _, _ in axes),
        stride=tuple(stride for _, stride, _ in axes),
        start=tuple(start for _, _, start in axes),
    )
