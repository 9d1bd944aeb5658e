"""Nodes of a block -> the nodes outside of it that they read, its context; and the number of its parameters."""

from __future__ import annotations

import torch
from torch import fx

from pararealize.tracing.size_nodes import is_told, size_of, tensors_of_size
from pararealize.tracing.type_nodes import reads_no_value

from .finder import BlockSpan
from .flow import Flow
from .signature import parameter_of

__all__ = ["context_of", "count_parameters", "shared_values"]


def context_of(
    flow: Flow, nodes: tuple[fx.Node, ...], entering: fx.Node, shared: frozenset[fx.Node]
) -> tuple[fx.Node, ...]:
    """What nodes read from outside besides the activation: inputs' values, broadcast state, shared parameter values."""
    inside = {*nodes, entering}
    context: dict[fx.Node, None] = {}
    stack = list(reversed(nodes))
    seen: set[fx.Node] = set()
    while stack:
        for argument in stack.pop().all_input_nodes:
            if argument in inside or argument in seen:
                continue
            seen.add(argument)
            if reads_no_value(argument):
                continue  # of a tensor of the part's own, or of an input of the same type
            if flow.depends[argument].inputs or argument in shared:
                context[argument] = None
            elif argument.meta.get("size") is not None:
                if not _is_at_hand(argument, entering, inside):
                    context[argument] = None  # a number, which the network computes from its inputs
            elif argument.target is not None and argument.op != "placeholder" and argument.target is not size_of:
                # a constant, or parameters' values that this part alone reads: computed within it, from what it reads
                stack.append(argument)
    return tuple(context)


def _is_at_hand(size: fx.Node, entering: fx.Node, inside: set[fx.Node]) -> bool:
    """Whether a part can compute a size from tensors of its own, or from those of its activation."""
    tensors = tensors_of_size(size)
    return inside.issuperset(tensors) or is_told(size.meta["size"], [entering])


def shared_values(flow: Flow, spans: list[BlockSpan]) -> frozenset[fx.Node]:
    """Values of parameters alone that several parts read, such as a table of relative positions.

    What only other such values read is read by the parts that read those: a table that every block halves for itself.
    """
    rest = -1  # stem, head and whatever else lies in no span count as one part
    part_of = {node: i for i, span in enumerate(spans) for node in flow.order[span.first : span.last + 1]}
    readers: dict[fx.Node, set[int]] = {}
    for node in reversed(flow.capture.graph.nodes):
        if node.op not in ("output", "get_attr") and flow.depends[node].on_parameters_alone:
            parts = (readers.get(user, {part_of.get(user, rest)}) for user in node.users)
            readers[node] = set().union(*parts)
    several = {node for node, parts in readers.items() if len(parts) > 1}
    return frozenset(node for node in several if not several.issuperset(node.users))  # the last of each computation


def count_parameters(flow: Flow, nodes: tuple[fx.Node, ...]) -> int:
    """Elements of the distinct parameters that nodes read, and of slices of such."""
    module = flow.capture.graph_module
    sizes: dict[int, int] = {}
    stack, seen = list(nodes), set(nodes)
    while stack:
        node = stack.pop()
        if node.op == "call_module":
            sizes.update((id(p), p.numel()) for p in module.get_submodule(str(node.target)).parameters())
        elif (source := parameter_of(node)) is not None and isinstance(node.meta["val"], torch.Tensor):
            parameter = module.get_parameter(str(source.target))
            count = sizes.get(id(parameter), 0) + node.meta["val"].numel()
            sizes[id(parameter)] = min(count, parameter.numel())
            continue
        for argument in node.all_input_nodes:
            if argument not in seen and flow.depends[argument].on_parameters_alone:
                seen.add(argument)
                stack.append(argument)
    return sum(sizes.values())
