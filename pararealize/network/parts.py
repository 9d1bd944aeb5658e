"""The emitted graph -> its parts: which calls are stem, adapters, segments, coarse blocks and head, and what they read.

The only file that knows how :class:`~pararealize.network.equation.Equation` names nodes.
"""

from __future__ import annotations

import operator

from torch import fx

from pararealize.plan.parts import Part, PartKind

__all__ = ["read_parts"]

_FOLDERS: dict[str, PartKind] = {"adapters": "adapter", "segments": "segment"}


def read_parts(graph: fx.Graph) -> dict[str, Part]:
    """Every part of a network by its name, in the order of the calls."""
    parts = {}
    for node in graph.nodes:
        if node.op == "call_module":
            part = _part(node)
            parts[part.name] = part
    return parts


def _part(node: fx.Node) -> Part:
    target = str(node.target)
    reads = tuple(map(str, node.args))
    if node.name.startswith("F_"):  # by the node, not by the target: F^j may be g^{j+1} itself
        return Part(kind="coarse", j=int(node.name.removeprefix("F_")), target=target, reads=reads[1:])
    folder, _, name = target.rpartition(".")
    if folder:
        kind = _FOLDERS[folder]
        return Part(kind=kind, j=int(name[1:]), target=target, reads=reads if kind == "adapter" else reads[1:])
    if target == "head":
        return Part(kind="head", target=target, reads=reads[1:])
    items = [user for user in node.users if user.target is operator.getitem]
    gives = tuple(item.name for item in sorted(items, key=lambda item: int(item.args[1]))) or (node.name,)  # type: ignore[arg-type]
    return Part(kind="context" if target == "context" else "stem", target=target, reads=reads, gives=gives)
