"""A captured graph, values that enter and values that leave -> the graph of what lies between.

What is needed besides (parameters, constants, sizes) is copied; sizes are read from the piece's own inputs, and devices
from the first of them, so that a piece runs wherever its input is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import fx

from .size_nodes import is_told, scaled, size_from, size_of, tensors_of_size
from .type_nodes import parameter_of_type, reads_no_value, types_of

__all__ = ["device_of", "subgraph"]


def device_of(tensor: torch.Tensor) -> torch.device:
    """The device of a tensor; within a piece, of that piece's first input."""
    return tensor.device


def subgraph(
    inputs: Sequence[fx.Node],
    outputs: Sequence[fx.Node] | fx.Node,
    names: Sequence[str] = (),
    *,
    besides: Sequence[fx.Node] = (),
) -> fx.Graph:
    """Copy what computes ``outputs`` from ``inputs`` into a graph of its own.

    Args:
        inputs: nodes whose values become the placeholders, the activation first.
        outputs: a node, several, or the captured graph's own output node.
        names: names for the placeholders; those of the nodes when left out. Where two are the same, the later one gets
            a number.
        besides: nodes of which those that nothing reads are copied too: they are there for their side effects.
    """
    copier = _Copier(inputs, names)
    if isinstance(outputs, fx.Node):
        result: Any = outputs.args[0] if outputs.op == "output" else outputs
    else:
        result = tuple(outputs)
    sources: list[fx.Node] = []
    fx.map_arg(result, sources.append)
    copier.copy([*sources, *(node for node in besides if not node.users)])
    copier.graph.output(fx.map_arg(result, copier.copies.__getitem__))
    return copier.graph


def _teller(size: fx.Node, nodes: set[fx.Node]) -> fx.Node | None:
    """The last tensor before a size that tells it alone; of those of the same sizes, one is asked."""
    tensors = {node.meta["sizes"]: node for node in sorted(nodes) if node < size and node.meta.get("sizes")}
    told = (node for node in reversed(tensors.values()) if is_told(size.meta["size"], [node]))
    return next(told, None)


class _Copier:
    """Copies nodes of a captured graph, and all that they need, into a graph whose placeholders are its inputs."""

    def __init__(self, inputs: Sequence[fx.Node], names: Sequence[str]) -> None:
        self.graph = fx.Graph()
        self.copies: dict[fx.Node, fx.Node] = {}
        self.inputs = list(inputs)
        for node, name in zip_longest(inputs, names):
            default = node.args if node.op == "placeholder" else ()
            copy = self.graph.create_node("placeholder", name or node.name, args=default)
            copy.target = copy.name  # unique and no word of Python's: what code calls the argument of this name
            copy.meta = dict(node.meta)
            self.copies[node] = copy
        self._device: fx.Node | None = None
        self._tellers: dict[fx.Node, fx.Node] = {}  # from a size to the tensor within the piece that it is read from

    def copy(self, nodes: list[fx.Node]) -> None:
        """Copy nodes and all that they need, in the order in which the original runs them.

        Any order in which sources come first would compute the same values, but for random numbers and for changes in
        place.
        """
        for node in sorted(self._needs(nodes)):
            self.copies[node] = self._copy(node)

    def _needs(self, nodes: list[fx.Node]) -> set[fx.Node]:
        """The nodes themselves and all that they are computed from, up to what is copied already.

        A size is computed as the network does where the piece has the tensors that it is read from; else from the
        piece's inputs, where these tell it, or from a tensor that the piece computes before.
        """
        sizes: list[fx.Node] = []

        def is_size(node: fx.Node) -> bool:
            if node.meta.get("size") is not None:
                sizes.append(node)
                return True
            return False

        needs = self._ancestors(nodes, is_size)
        for node in [node for node in needs if reads_no_value(node)]:
            self._read_type(node, needs)
        for node in dict.fromkeys(sizes):
            if not all(tensor in needs or tensor in self.copies for tensor in tensors_of_size(node)):
                copy = size_from(node.meta["size"], self.inputs, copies=self.copies.__getitem__)
                if copy is not None:
                    self.copies[node] = copy
                    continue
                if (teller := _teller(node, needs)) is not None:
                    self._tellers[node] = teller
                    needs.add(node)
                    continue
            needs |= self._ancestors([node], needs.__contains__)
        return needs

    def _read_type(self, node: fx.Node, needs: set[fx.Node]) -> None:
        """Have a type read from a tensor that the piece has: its own, or an input that always has the same type."""
        source = node.all_input_nodes[0]
        if not self.inputs or source in needs or source in self.copies:
            return
        if source.op != "get_attr":
            alike = (self.copies[each] for each in self.inputs if types_of(each) == types_of(source))
            tensor = next(alike, None) or self._parameter_of(source)
            assert callable(node.target)
            self.copies[node] = self.graph.call_function(node.target, (tensor, *node.args[1:]))
            needs.discard(node)
            return
        needs.add(source)

    def _parameter_of(self, source: fx.Node) -> fx.Node:
        """A parameter that a value is computed with, which has its type."""
        path = parameter_of_type(source)
        node = self.graph.get_attr(path)
        node.meta.update(val=source.meta["val"], other=source.meta["other"], region=None)
        return node

    def _ancestors(self, nodes: list[fx.Node], ends: Callable[[fx.Node], bool]) -> set[fx.Node]:
        """Nodes and what they are computed from, without what is copied already and what ends the search."""
        ancestors: set[fx.Node] = set()
        stack = list(nodes)
        while stack:
            node = stack.pop()
            if node in ancestors or node in self.copies or ends(node):
                continue
            ancestors.add(node)
            if not self._is_local_size(node) and not (reads_no_value(node) and self.inputs):
                stack += node.all_input_nodes
        return ancestors

    def _copy(self, node: fx.Node) -> fx.Node:
        assert node.op != "placeholder", f"{node} is read inside a piece that does not receive it"
        if self._is_local_size(node):
            return self._batch_size(node)
        if node in self._tellers:
            told = size_from(node.meta["size"], [self._tellers[node]], copies=self.copies.__getitem__)
            assert told is not None
            return told
        copy = self.graph.node_copy(node, self.copies.__getitem__)
        copy.args = tuple(map(self._local_device, copy.args))
        copy.kwargs = {key: self._local_device(value) for key, value in copy.kwargs.items()}
        return copy

    def _is_local_size(self, node: fx.Node) -> bool:
        """Whether a size can be read from the piece's first input instead: it grows with the batch, or not at all."""
        if node.target is not size_of or node.args[0] in self.inputs or not self.inputs or "size" in node.meta:
            return False
        value, other = (self.inputs[0].meta.get(key) for key in ("val", "other"))
        return (
            isinstance(value, torch.Tensor)
            and isinstance(other, torch.Tensor)
            and value.ndim > 0
            and other.shape[0] == value.shape[0] + 1
        )

    def _batch_size(self, node: fx.Node) -> fx.Node:
        """``slope * batch + offset`` for a size of a tensor that this piece does not see."""
        tensor, axis = node.args
        assert isinstance(tensor, fx.Node)
        a, b = (tensor.meta[key].shape[axis] for key in ("val", "other"))  # at one batch size and at the next
        slope, offset = b - a, a - (b - a) * self.inputs[0].meta["val"].shape[0]
        size = self.graph.call_function(size_of, (self.copies[self.inputs[0]], 0))
        return scaled(self.graph, size, 1, slope, offset)

    def _local_device(self, value: Any) -> Any:
        if not isinstance(value, torch.device) or not self.inputs:
            return value
        if self._device is None:
            first = next(iter(self.copies.values()))
            with self.graph.inserting_after(first):
                self._device = self.graph.call_function(device_of, (first,))
        return self._device
