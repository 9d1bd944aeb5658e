"""Nodes of a part of the network -> what they read from outside of it: context, and parameters."""

from __future__ import annotations

from torch import fx

from pararealize.tracing.merging import size_of

from .finder import Run
from .flow import Flow

__all__ = ["context_of", "count_parameters", "shared_values"]


def context_of(
    flow: Flow, nodes: tuple[fx.Node, ...], entering: fx.Node, shared: frozenset[fx.Node]
) -> tuple[fx.Node, ...]:
    """What nodes read from outside besides the activation: inputs' values, broadcast state, shared parameter values."""
    inside = set(nodes)
    found: dict[fx.Node, None] = {}
    stack = list(reversed(nodes))
    seen: set[fx.Node] = set()
    while stack:
        node = stack.pop()
        for argument in node.all_input_nodes:
            if argument is entering or argument in inside or argument in seen:
                continue
            seen.add(argument)
            depends = flow.depends[argument]
            if depends[0] or argument in shared:
                found[argument] = None
            elif argument.target is not None and argument.op != "placeholder" and argument.target is not size_of:
                stack.append(argument)
    return tuple(found)


def shared_values(flow: Flow, runs: list[Run]) -> frozenset[fx.Node]:
    """Values of parameters alone that several parts read, such as a table of relative positions."""
    part_of = {node: i for i, run in enumerate(runs) for node in flow.order[run.first : run.last + 1]}
    readers: dict[fx.Node, set[int]] = {}
    for node in flow.capture.graph.nodes:
        if flow.depends[node] != (False, True) if node.op != "output" else True:
            continue
        if node.op != "get_attr":
            readers[node] = {part_of.get(user, -1) for user in node.users if user in part_of or user in flow.depends}
    return frozenset(node for node, parts in readers.items() if len(parts) > 1)


def count_parameters(flow: Flow, nodes: tuple[fx.Node, ...]) -> int:
    """Elements of the distinct parameters that nodes read."""
    module = flow.capture.graph_module
    found: dict[int, int] = {}
    stack, seen = list(nodes), set(nodes)
    while stack:
        node = stack.pop()
        if node.op == "call_module":
            found.update((id(p), p.numel()) for p in module.get_submodule(str(node.target)).parameters())
        elif node.op == "get_attr" and node.meta.get("trainable"):
            parameter = module.get_parameter(str(node.target))
            found[id(parameter)] = parameter.numel()
        for argument in node.all_input_nodes:
            if argument not in seen and flow.depends[argument] == (False, True):
                seen.add(argument)
                stack.append(argument)
    return sum(found.values())
