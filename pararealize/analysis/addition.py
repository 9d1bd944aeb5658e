"""A node of a captured graph -> x + f(x), where it is such a sum, or the reason why it is none.

x ──┬── f ──(+)── [ReLU] ──       every path back from f's value ends in x, in parameters or in context;
└────────┘                    x, f(x) and the sum are of one shape; nothing inside f is read elsewhere
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from .flow import Flow

__all__ = ["Part", "adds", "name_of", "part_of"]

_ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}
_RELUS = {torch.relu, torch.relu_, F.relu, F.relu_, "relu", "relu_"}
_RELU_MODULES = (nn.ReLU,)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """One addition x + f(x) of a captured graph.

    Attributes:
        x: the node that is added to f of it.
        nodes: f's operations, in execution order.
        branch: the node of f's value.
        addition: the node of the sum.
        tail: what alone reads the sum: a ReLU, identities before and after it, or nothing.
        post: that ReLU, where there is one.
        shortcut: identities that x passes on its way to the sum.
    """

    x: fx.Node
    nodes: tuple[fx.Node, ...]
    branch: fx.Node
    addition: fx.Node
    tail: tuple[fx.Node, ...]
    post: fx.Node | None
    shortcut: tuple[fx.Node, ...]

    @property
    def output(self) -> fx.Node:
        """What follows reads this node."""
        return self.tail[-1] if self.tail else self.addition

    @property
    def every(self) -> tuple[fx.Node, ...]:
        """All nodes: shortcut, f, sum and tail."""
        return (*self.shortcut, *self.nodes, self.addition, *self.tail)

    def without_post(self) -> Part:
        """The same addition, ending before its ReLU."""
        if self.post is None:
            return self
        return dataclasses.replace(self, post=None, tail=self.tail[: self.tail.index(self.post)])


def adds(node: fx.Node) -> bool:
    """Whether a node is a plain sum of two values, in place or not."""
    if node.op not in ("call_function", "call_method") or node.target not in _ADDITIONS:
        return False
    operands = [*node.args, *(value for key, value in node.kwargs.items() if key == "other")]
    others = {key for key in node.kwargs if key not in ("other", "alpha")}
    plain = not others and bool(node.kwargs.get("alpha", 1) == 1)
    return plain and len(operands) == 2 and all(isinstance(operand, fx.Node) for operand in operands)


def part_of(
    flow: Flow,
    addition: fx.Node,
    position: Mapping[fx.Node, int],
    state: set[fx.Node],
    module_of: Callable[[str], nn.Module],
) -> Part | str:
    """The addition as x + f(x), or why it is none."""
    found = _x_and_branch(addition, position, module_of)
    if found is None:
        first, second = sorted(addition.all_input_nodes, key=position.__getitem__)
        return f"its shortcut is not the identity but {_named(second if _is_short(second, first) else first)}"
    x, branch, shortcut, above = found
    shapes = [_shape(node) for node in (x, branch, addition)]
    if None in shapes or len(set(shapes)) > 1:
        words = ["×".join(map(str, shape[0][1:])) if shape else "no tensor" for shape in shapes]
        return f"x, f(x) and their sum are of different shapes or types: {', '.join(words)}"
    nodes = tuple(node for node in _inside(x, addition, above) if node not in shortcut)
    if branch not in nodes:
        return f"f's value {branch.name} is read elsewhere, by {_others(branch, addition)}"
    inside = set(nodes)
    for node in nodes:
        for argument in node.all_input_nodes:
            if argument is x or argument in inside:
                continue
            if argument in above:
                return f"{argument.name} inside f is read elsewhere, by {_others(argument, node)}"
            if argument in state and argument not in flow.broadcast:
                return f"f reads another activation besides x, {_named(argument)}"
    if not _has_parameters(nodes, inside, flow, module_of):
        return "f has no parameters"
    memories = x.meta.get("memories", (None, None))
    for node in nodes:
        if any(memory in changed for memory, changed in zip(memories, node.meta.get("changed", ()), strict=False)):
            return f"{_named(node)} changes x in place; build it with inplace=False"
    if any(user is not addition and user not in shortcut for node in shortcut for user in node.users):
        return f"its shortcut {shortcut[-1].name} is read elsewhere"
    tail, post = _tail(addition, module_of)
    return Part(x=x, nodes=nodes, branch=branch, addition=addition, tail=tail, post=post, shortcut=shortcut)


def _x_and_branch(
    addition: fx.Node, position: Mapping[fx.Node, int], module_of: Callable[[str], nn.Module]
) -> tuple[fx.Node, fx.Node, tuple[fx.Node, ...], set[fx.Node]] | None:
    """The operand that the other one comes from, back through identities; these; and all that comes from it."""
    first, second = sorted(addition.all_input_nodes, key=position.__getitem__)
    for x, branch in ((first, second), (second, first)):
        shortcut: tuple[fx.Node, ...] = ()
        while True:
            above = _descendants(x, addition)
            if branch in above:
                return x, branch, shortcut, above
            if not _is_identity(x, module_of):
                break
            shortcut, x = (x, *shortcut), x.all_input_nodes[0]
    return None


def _is_identity(node: fx.Node, module_of: Callable[[str], nn.Module]) -> bool:
    return node.op == "call_module" and type(module_of(str(node.target))) is nn.Identity


def _has_parameters(
    nodes: tuple[fx.Node, ...], inside: set[fx.Node], flow: Flow, module_of: Callable[[str], nn.Module]
) -> bool:
    """Whether f is a layer, and not the formula of an activation function such as x + 0.04·x³."""
    for node in nodes:
        if node.op == "call_module" and next(module_of(str(node.target)).parameters(), None) is not None:
            return True
        if any(flow.depends[argument] == (False, True) for argument in node.all_input_nodes if argument not in inside):
            return True
    return False


def _descendants(x: fx.Node, end: fx.Node) -> set[fx.Node]:
    """Everything between x and an addition that depends on x."""
    found = {x}
    node = x.next
    while node is not end:
        if any(argument in found for argument in node.all_input_nodes):
            found.add(node)
        node = node.next
    return found - {x}


def _inside(x: fx.Node, addition: fx.Node, above: set[fx.Node]) -> tuple[fx.Node, ...]:
    """The nodes between x and an addition that serve the addition alone, and those that nothing reads."""
    inside: set[fx.Node] = {addition}
    node = addition.prev
    found: list[fx.Node] = []
    while node is not x:
        serves = all(user in inside for user in node.users) if node.users else node in above
        if serves and node.op not in ("placeholder", "get_attr"):
            inside.add(node)
            found.append(node)
        node = node.prev
    return tuple(reversed(found))


def _tail(addition: fx.Node, module_of: Callable[[str], nn.Module]) -> tuple[tuple[fx.Node, ...], fx.Node | None]:
    """The ReLU that alone reads a sum, with identities before and after it."""
    tail: list[fx.Node] = []
    post = None
    node = addition
    while len(node.users) == 1:
        (node,) = node.users
        if post is None and _is_relu(node, module_of):
            post = node
        elif not _is_identity(node, module_of):
            break
        tail.append(node)
    return tuple(tail), post


def _is_relu(node: fx.Node, module_of: Callable[[str], nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(module_of(str(node.target)), _RELU_MODULES)
    return node.target in _RELUS


def _shape(node: fx.Node) -> tuple[Any, ...] | None:
    value, other = node.meta.get("val"), node.meta.get("other")
    if not isinstance(value, torch.Tensor):
        return None
    return tuple(value.shape), None if other is None else tuple(other.shape), value.dtype


def _is_short(a: fx.Node, b: fx.Node) -> bool:
    """Whether the way back from ``a`` to where it was branched off is shorter than that from ``b``."""
    return _length(a) < _length(b)


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
    path = name_of(node)
    return f"{node.name} in {path}" if path else node.name


def name_of(node: fx.Node) -> str:
    """The qualified name of the module that a node stands in."""
    return str(next(reversed(node.meta.get("nn_module_stack", {"": None}))))
