"""The emitted graph -> its parts and values: the nodes that call C^j, g^j, F^j and h, and those of x_j, y_j, r_j, z_j.

The only file that reads what :func:`~pararealize.network.equation.write_equation` wrote. Parts are told by the modules
that are called and by what they are called with, not by the names of nodes: an input may be called ``y_1``.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterable
from typing import TypeAlias

from torch import fx, nn

from pararealize.plan.parts import Part, PartKind

__all__ = ["EquationNodes", "Index", "part_modules", "parts_by_node", "read_equation", "read_parts"]

Index: TypeAlias = tuple[int, int]  # (m, j)

_FOLDERS: dict[str, PartKind] = {"adapters": "adapter", "segments": "segment", "coarse": "coarse"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EquationNodes:
    """The nodes of an emitted graph by the letters of equation (3), and by (m, j) as parts are numbered.

    In a network of one window m is 0.

    Attributes:
        graph: the graph.
        parts: every part by its name, in the order of the calls.
        calls: the node that calls each part, by the part's name.
        x: the inputs of the segments, j = 1..n; x_1 of a later window is the last z of the one before.
        y: their outputs, j = 1..n.
        v: their corrected outputs, which all others read: K^j(x_j, y_j), or y_j where there is no K^j.
        r: the residuals that F^j is called with, j = 1..n-1.
        z: the corrected outputs, j = 1..n; z_1 is v_1.
    """

    graph: fx.Graph
    parts: dict[str, Part]
    calls: dict[str, fx.Node]
    x: dict[Index, fx.Node]
    y: dict[Index, fx.Node]
    v: dict[Index, fx.Node]
    r: dict[Index, fx.Node]
    z: dict[Index, fx.Node]

    def context_of(self, name: str) -> list[fx.Node]:
        """What a segment, a coarse block or the head reads beside its activation or residual."""
        return [read for read in self.calls[name].args[1:] if isinstance(read, fx.Node)]

    def before(self, nodes: Iterable[fx.Node]) -> list[fx.Node]:
        """The nodes whose values depend on none of these, in the order of the graph."""
        late = set(nodes)
        early = []
        for node in self.graph.nodes:
            if node in late or late.intersection(node.all_input_nodes):
                late.add(node)
            else:
                early.append(node)
        return early


def read_equation(graph: fx.Graph) -> EquationNodes:
    """Find the parts and values of equation (3) in the graph of a network."""
    parts = read_parts(graph)
    calls = dict(zip(parts, graph.find_nodes(op="call_module"), strict=True))  # whose calls the parts are, in order
    y = {part.index: calls[name] for name, part in parts.items() if part.kind == "segment"}
    F = {part.index: calls[name] for name, part in parts.items() if part.kind == "coarse"}
    v = y | {part.index: calls[name] for name, part in parts.items() if part.kind == "correction"}
    first = {(m, j): node for (m, j), node in v.items() if j == 1}
    return EquationNodes(
        graph=graph,
        parts=parts,
        calls=calls,
        x={index: node.all_input_nodes[0] for index, node in y.items()},
        y=y,
        v=v,
        r={index: node.all_input_nodes[0] for index, node in F.items()},
        z=first | {(m, j + 1): next(iter(node.users)) for (m, j), node in F.items()},  # z_{j+1} = v_{j+1} + F^j(r_j)
    )


def read_parts(graph: fx.Graph) -> dict[str, Part]:
    """Every part of a network by its name, in the order of the calls."""
    return {part.name: part for part in parts_by_node(graph).values()}


def parts_by_node(graph: fx.Graph) -> dict[fx.Node, Part]:
    """The part that each calling node of an emitted graph calls, in the order of the calls."""
    parts = {node: part for node in graph.nodes if (part := _part_of(node)) is not None}
    lengths: dict[int, int] = {}  # of windows: how many segments they have
    for part in parts.values():
        if part.kind == "segment":
            lengths[part.m] = max(lengths.get(part.m, 0), part.j)
    n, last = max(lengths.values(), default=1), max(lengths, default=0)
    offset = n - lengths.get(last, n)  # the last window ends on the last device, however few segments it has

    def home(part: Part) -> int:
        if part.kind == "head":
            return n
        return max(part.j + (part.kind == "coarse"), 1) + (offset if part.j and part.m == last else 0)

    return {node: dataclasses.replace(part, home=home(part)) for node, part in parts.items()}


def _part_of(node: fx.Node) -> Part | None:
    """The part that a node of an emitted graph calls, but for its home; ``None`` where it calls none."""
    if node.op != "call_module":
        return None
    target = str(node.target)
    reads = tuple(map(str, node.args))
    folder, _, name = target.rpartition(".")
    if folder:
        kind, (m, j) = _FOLDERS[folder], _numbers(name)
        if kind == "coarse" and name[0] == "K":
            return Part(kind="correction", m=m, j=j, target=target)
        if kind == "segment" and node.all_input_nodes[0].target is operator.sub:  # of a residual: F^{j-1} is g^j itself
            kind, j = "coarse", j - 1
        return Part(kind=kind, m=m, j=j, target=target, reads=reads if kind == "adapter" else reads[1:])
    if target == "head":
        return Part(kind="head", target=target, reads=reads[1:])
    items = [user for user in node.users if user.target is operator.getitem]
    gives = tuple(item.name for item in sorted(items, key=lambda item: int(item.args[1]))) or (node.name,)  # type: ignore[arg-type]
    return Part(kind="context" if target == "context" else "stem", target=target, reads=reads, gives=gives)


def _numbers(name: str) -> Index:
    """``(m, j)`` of a part's name: ``C2_3``, or ``C3`` in a network of one window, where m is 0."""
    m, _, j = name[1:].rpartition("_")
    return int(m or 0), int(j)


def part_modules(net: nn.Module, parts: Iterable[Part]) -> dict[Part, nn.Module]:
    """The module of each part; an F^j that is g^{j+1} itself has none of its own.

    Args:
        net: a module with the names of the network: the network itself, or one that runs it.
        parts: its parts.
    """
    return {part: net.get_submodule(part.target) for part in parts if not part.is_segment_itself}
