"""Flow -> its additions of two activations: each as x + f(x), or the reason why it is not of that form.

x ──┬── f ──(+)── [ReLU] ──       every path back from f's value ends in x, in parameters or in context;
└────────┘                    x, f(x) and the sum are of one shape; nothing inside f is read elsewhere
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from pararealize.tracing.hooks import hook_of

from .flow import Flow, module_path

__all__ = ["Addition", "additions_of", "is_addition"]

_ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}
_RELUS = {torch.relu, torch.relu_, F.relu, F.relu_, "relu", "relu_"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Addition:
    """One addition x + f(x) of a captured graph.

    Attributes:
        x: the node that is added to f of it.
        nodes: f's operations, in execution order.
        branch: the node of f's value.
        sum: the node of x + f(x).
        tail: what alone reads the sum: a ReLU, identities before and after it, or nothing. Modules with hooks are none.
        post: that ReLU, where there is one.
        shortcut: identities that x passes on its way to the sum.
    """

    x: fx.Node
    nodes: tuple[fx.Node, ...]
    branch: fx.Node
    sum: fx.Node
    tail: tuple[fx.Node, ...]
    post: fx.Node | None
    shortcut: tuple[fx.Node, ...]

    @property
    def output(self) -> fx.Node:
        """What follows reads this node."""
        return self.tail[-1] if self.tail else self.sum

    @property
    def all_nodes(self) -> tuple[fx.Node, ...]:
        """Shortcut, f, sum and tail."""
        return (*self.shortcut, *self.nodes, self.sum, *self.tail)

    def without_post(self) -> Addition:
        """The same addition, ending before its ReLU."""
        if self.post is None:
            return self
        return dataclasses.replace(self, post=None, tail=self.tail[: self.tail.index(self.post)])


def additions_of(flow: Flow) -> Iterator[tuple[fx.Node, Addition | str]]:
    """Every sum of two activations in execution order, with its form x + f(x) or why it has none."""
    reader = _Reader(flow)
    for node in flow.order:
        operands = node.all_input_nodes
        # a sum with a bias or a table of positions adds no activation; x + x reads one
        if is_addition(node) and len(operands) == 2 and all(flow.depends[operand].inputs for operand in operands):
            yield node, reader.addition(node)


def is_addition(node: fx.Node) -> bool:
    """Whether a node is a plain sum of two values, in place or not."""
    if node.op not in ("call_function", "call_method") or node.target not in _ADDITIONS:
        return False
    operands = [*node.args, *(value for key, value in node.kwargs.items() if key == "other")]
    others = {key for key in node.kwargs if key not in ("other", "alpha")}
    plain = not others and bool(node.kwargs.get("alpha", 1) == 1)
    return plain and len(operands) == 2 and all(isinstance(operand, fx.Node) for operand in operands)


class _Reader:
    """Reads the sums of one graph."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.module_of = flow.capture.graph_module.get_submodule
        self.position = {node: i for i, node in enumerate(flow.capture.graph.nodes)}
        self.state = set(flow.order)

    def addition(self, sum_node: fx.Node) -> Addition | str:
        """The sum as x + f(x), or why it is none."""
        first, second = sorted(sum_node.all_input_nodes, key=self.position.__getitem__)
        candidate = self._candidate(sum_node, first, second) or self._candidate(sum_node, second, first)
        if candidate is None:
            for node in filter(self._is_called_identity, (first, second)):
                if hook := hook_of(self.module_of(str(node.target))):
                    return f"its shortcut {node.target} has a {hook}"
            shortcut = min(first, second, key=_length)  # the shorter way back to where it was branched off
            return f"its shortcut is not the identity but {_named(shortcut)}"
        fault = next(self._faults(candidate), None)
        if fault is not None:
            return fault
        tail, post = self._tail(sum_node)
        return dataclasses.replace(candidate, tail=tail, post=post)

    def _candidate(self, sum_node: fx.Node, x: fx.Node, branch: fx.Node) -> Addition | None:
        """The sum as x + f(x), faulty or not, if its operand ``branch`` comes from x or from before identities of x."""
        shortcut: tuple[fx.Node, ...] = ()
        while branch not in (descendants := _descendants(x, sum_node)):
            if not self._is_identity(x):
                return None
            shortcut, x = (x, *shortcut), x.all_input_nodes[0]
        nodes = tuple(node for node in _serving(x, sum_node, descendants) if node not in shortcut)
        return Addition(x=x, nodes=nodes, branch=branch, sum=sum_node, tail=(), post=None, shortcut=shortcut)

    def _faults(self, candidate: Addition) -> Iterator[str]:
        """What speaks against the form x + f(x), the most telling first."""
        yield from _shape_faults(candidate)
        yield from self._read_faults(candidate)
        if not self._has_parameters(candidate):
            yield "f has no parameters"
        yield from _in_place_faults(candidate)
        shortcut = candidate.shortcut
        if any(user is not candidate.sum and user not in shortcut for node in shortcut for user in node.users):
            yield f"its shortcut {shortcut[-1].name} is read elsewhere"

    def _read_faults(self, candidate: Addition) -> Iterator[str]:
        """Values of f that something else reads too, and activations besides x that f reads."""
        inside = set(candidate.nodes)
        if candidate.branch not in inside:
            readers = _others(candidate.branch, candidate.sum)
            yield f"f's value {candidate.branch.name} is read elsewhere, by {readers}"
        descendants = _descendants(candidate.x, candidate.sum)
        for node in candidate.nodes:
            for argument in node.all_input_nodes:
                if argument is candidate.x or argument in inside:
                    continue
                if argument in descendants:
                    yield f"{argument.name} inside f is read elsewhere, by {_others(argument, node)}"
                if argument in self.state and argument not in self.flow.broadcast:
                    yield f"f reads another activation besides x, {_named(argument)}"

    def _has_parameters(self, candidate: Addition) -> bool:
        """Whether f is a layer, and not the formula of an activation function such as x + 0.04·x³."""
        inside = set(candidate.nodes)
        return any(
            (node.op == "call_module" and next(self.module_of(str(node.target)).parameters(), None) is not None)
            or any(self.flow.depends[a].on_parameters_alone for a in node.all_input_nodes if a not in inside)
            for node in candidate.nodes
        )

    def _tail(self, sum_node: fx.Node) -> tuple[tuple[fx.Node, ...], fx.Node | None]:
        """The ReLU that alone reads a sum, with identities before and after it."""
        tail: list[fx.Node] = []
        post = None
        node = sum_node
        while len(node.users) == 1:
            (node,) = node.users
            if post is None and self._is_relu(node):
                post = node
            elif not self._is_identity(node):
                break
            tail.append(node)
        return tuple(tail), post

    def _is_called_identity(self, node: fx.Node) -> bool:
        return node.op == "call_module" and type(self.module_of(str(node.target))) is nn.Identity

    def _is_identity(self, node: fx.Node) -> bool:
        return node.op == "call_module" and self._is_plain(node, nn.Identity)

    def _is_relu(self, node: fx.Node) -> bool:
        return self._is_plain(node, nn.ReLU) if node.op == "call_module" else node.target in _RELUS

    def _is_plain(self, node: fx.Node, kind: type[nn.Module]) -> bool:
        """Whether a call does what a class's function does: hooks, which may do anything, run with the call alone."""
        module = self.module_of(str(node.target))
        return type(module) is kind and hook_of(module) is None and "forward" not in vars(module)


# What x and f consist of ----------------------------------------------------------------------------------------------


def _descendants(x: fx.Node, end: fx.Node) -> set[fx.Node]:
    """Everything between x and a sum that depends on x."""
    descendants = {x}
    node = x.next
    while node is not end:
        if any(argument in descendants for argument in node.all_input_nodes):
            descendants.add(node)
        node = node.next
    return descendants - {x}


def _serving(x: fx.Node, sum_node: fx.Node, descendants: set[fx.Node]) -> tuple[fx.Node, ...]:
    """The nodes between x and a sum that serve the sum alone, and those that nothing reads."""
    inside: set[fx.Node] = {sum_node}
    nodes: list[fx.Node] = []
    node = sum_node.prev
    while node is not x:
        serves = all(user in inside for user in node.users) if node.users else node in descendants
        if serves and node.op not in ("placeholder", "get_attr"):
            inside.add(node)
            nodes.append(node)
        node = node.prev
    return tuple(reversed(nodes))


def _shape_faults(candidate: Addition) -> Iterator[str]:
    shapes = [_shape(node) for node in (candidate.x, candidate.branch, candidate.sum)]
    if None in shapes or len(set(shapes)) > 1:
        words = ["×".join(map(str, shape[0][1:])) if shape else "no tensor" for shape in shapes]
        yield f"x, f(x) and their sum are of different shapes or types: {', '.join(words)}"


def _in_place_faults(candidate: Addition) -> Iterator[str]:
    """Operations of f that write into the memory of x: the sum is then of the new x, relu(x) + f(x) for instance.

    The recorder notes the memory of every value, and which memories an operation changes, in train and in eval mode.
    """
    memories = candidate.x.meta.get("memories", (None, None))
    for node in candidate.nodes:
        if any(memory in changed for memory, changed in zip(memories, node.meta.get("changed", ()), strict=False)):
            yield f"{_named(node)} changes x in place; build it with inplace=False"


def _shape(node: fx.Node) -> tuple[Any, ...] | None:
    """The shape at the example's batch and at the other one, and the element type."""
    value, other = node.meta.get("val"), node.meta.get("other")
    if not isinstance(value, torch.Tensor):
        return None
    return tuple(value.shape), None if other is None else tuple(other.shape), value.dtype


# Words for a refusal --------------------------------------------------------------------------------------------------


def _length(node: fx.Node) -> int:
    """How many operations back the nearest value is that others read too."""
    steps = 0
    while len(node.users) <= 1 or steps == 0:
        states = [a for a in node.all_input_nodes if isinstance(a.meta.get("val"), torch.Tensor) and a.op != "get_attr"]
        if not states:
            break
        node, steps = states[0], steps + 1
    return steps


def _others(node: fx.Node, reader: fx.Node) -> str:
    return ", ".join(_named(user) for user in node.users if user is not reader) or "the output"


def _named(node: fx.Node) -> str:
    """The module a node calls, or the node with the module that it stands in."""
    if node.op == "call_module":
        return str(node.target)
    path = module_path(node)
    return f"{node.name} in {path}" if path else node.name
