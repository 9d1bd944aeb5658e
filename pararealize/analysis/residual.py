"""Flow, or a Block of it -> x + f(x), where it has that form, and the reason where it has not.

An addition of two activations is a residual block when one operand dominates the other (``addition.py``). A sum that
only a ReLU reads is a post-activation block, which ends at that ReLU. A projection shortcut makes none. A transformer's
layer is two such blocks in a row, or one:

    x + attn(x) = u,  u + mlp(u)             as one block:   f(x) = attn(x) + mlp(x + attn(x))
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterator, Mapping

from torch import fx

from .addition import Part, adds, name_of, part_of
from .blocks import Block, BlockChain
from .flow import Flow

__all__ = ["NotResidual", "Residual", "Residuals", "chains_of", "find_residuals", "residual_of"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Residual:
    """A block x + f(x), or relu(x + f(x)): one addition, or several in a row taken as one.

    Attributes:
        name: the qualified name of the module it stands in, with ``#2`` for a second one there.
        parts: its additions; with two of them, f(x) = f_1(x) + f_2(x + f_1(x)).
    """

    name: str
    parts: tuple[Part, ...]

    @property
    def x(self) -> fx.Node:
        """The node that enters."""
        return self.parts[0].x

    @property
    def output(self) -> fx.Node:
        """The node that leaves."""
        return self.parts[-1].output

    @property
    def post(self) -> fx.Node | None:
        """The ReLU behind the last addition of a post-activation block."""
        return self.parts[-1].post

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        """Every node of the block, additions and shortcut and ReLU included."""
        return tuple(node for part in self.parts for node in part.every)

    @property
    def context(self) -> tuple[fx.Node, ...]:
        """What f reads from outside besides x: parameters, masks, sizes."""
        inside = {*self.nodes, self.x}
        read = [a for part in self.parts for node in part.nodes for a in node.all_input_nodes if a not in inside]
        return tuple(dict.fromkeys(read))

    def graph(self) -> fx.Graph:
        """A graph of f alone, called with x and its context; parameters that are read as such stay ``get_attr``."""
        graph = fx.Graph()
        z = graph.placeholder("x")
        known = {}
        for node in self.context:
            known[node] = graph.node_copy(node) if node.op == "get_attr" else graph.placeholder(node.name)
        graph.output(self.write(graph, z, known))
        return graph

    def write(self, graph: fx.Graph, z: fx.Node, known: Mapping[fx.Node, fx.Node], name: str | None = None) -> fx.Node:
        """Write f(z) at the end of a graph.

        Args:
            graph: where to.
            z: that graph's node for f's argument.
            known: from nodes that f reads besides, to that graph's nodes.
            name: a name for the node of f's value.

        Returns:
            The node of f(z).
        """
        u, total = z, None
        for part in self.parts:
            only = len(self.parts) == 1
            k = _copy(graph, part, {**known, part.x: u} if part.nodes else {}, name if only else None)
            total = k if total is None else graph.create_node("call_function", operator.add, (total, k), name=name)
            if part is not self.parts[-1]:
                u = graph.call_function(operator.add, (u, k))
        assert total is not None
        return total

    def __str__(self) -> str:
        value = self.x.meta["val"]
        shape = "×".join(str(size) for size in value.shape[1:])
        return f"{self.name}: {'relu(x + f(x))' if self.post is not None else 'x + f(x)'}, x {shape}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NotResidual:
    """A block, or an addition, that has not the form x + f(x), and why."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Residuals:
    """Every residual block of a network in execution order, and every other addition of activations."""

    found: tuple[Residual, ...]
    refused: tuple[NotResidual, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, (*self.found, *self.refused)))


def find_residuals(flow: Flow) -> Residuals:
    """Every residual block of a network; blocks within blocks are found too.

    Example:
        >>> import torch
        >>> from pararealize.tracing.front_end import capture
        >>> from pararealize.analysis.flow import flow_of
        >>> from pararealize.models import resnet20
        >>> found = find_residuals(flow_of(capture(resnet20(), torch.randn(2, 3, 32, 32))))
        >>> print(found.found[0])
        stage1.0: x + f(x), x 16×32×32
        >>> print(found.refused[0])
        stage2.0: its shortcut is not the identity but stage2.0.projection
    """
    found: list[Residual] = []
    refused: list[NotResidual] = []
    position = {node: i for i, node in enumerate(flow.capture.graph.nodes)}
    state = set(flow.order)
    module_of = flow.capture.graph_module.get_submodule
    seen: dict[str, int] = {}
    for node in flow.order:
        if not adds(node) or len(node.all_input_nodes) != 2:
            continue
        if not all(flow.depends[argument][0] for argument in node.all_input_nodes):
            continue  # a bias, or a table of positions
        name = name_of(node)
        made = part_of(flow, node, position, state, module_of)
        if isinstance(made, str):
            refused.append(NotResidual(name=name, reason=made))
            continue
        seen[name] = seen.get(name, 0) + 1
        found.append(Residual(name=name if seen[name] == 1 else f"{name}#{seen[name]}", parts=(made,)))
    return Residuals(found=tuple(found), refused=tuple(refused))


def residual_of(chain: BlockChain, block: Block, residuals: Residuals | None = None) -> Residual | NotResidual:
    """A block as x + f(x), with the residuals in a row within it taken as one.

    Args:
        chain: the network's blocks.
        block: one of them.
        residuals: those of ``chain.flow``, where they are known already.

    Example:
        >>> import torch
        >>> from pararealize import capture, find_blocks
        >>> from pararealize.models import resnet20
        >>> chain = find_blocks(capture(resnet20(), torch.randn(2, 3, 32, 32)))
        >>> [str(residual_of(chain, block)) for block in chain.blocks[2:4]]
        ['stage1.2: x + f(x), x 16×32×32', 'stage2.0: its shortcut is not the identity but stage2.0.projection']
    """
    known = residuals or find_residuals(chain.flow)
    inside = set(block.nodes)
    starting: dict[fx.Node, list[Residual]] = {}
    for residual in known.found:
        if residual.parts[0].addition in inside:
            starting.setdefault(residual.x, []).append(residual)
    parts = _row(block.input, block.output, starting)
    if parts is None:
        return NotResidual(name=block.name, reason=_why_not(block, known))
    if any(part.post is not None for part in parts[:-1]):
        reason = f"it is {len(parts)} residual blocks with a ReLU between them, which are no one x + f(x)"
        return NotResidual(name=block.name, reason=reason)
    return Residual(name=block.name, parts=parts)


def _row(start: fx.Node, end: fx.Node, starting: Mapping[fx.Node, list[Residual]]) -> tuple[Part, ...] | None:
    """Residuals that lead from one node to another, each beginning where the one before ends."""
    for residual in starting.get(start, ()):
        for part in (residual.parts[0], residual.parts[0].without_post()):
            if part.output is end:
                return (part,)
        rest = _row(residual.output, end, starting)
        if rest is not None:
            return residual.parts + rest
    return None


def _why_not(block: Block, residuals: Residuals) -> str:
    inside = set(block.nodes)
    named = [r.reason for r in residuals.refused if r.name == block.name or r.name.startswith(f"{block.name}.")]
    if named:
        return named[-1]
    within = [residual for residual in residuals.found if residual.parts[0].addition in inside]
    if within:
        last = within[-1]
        what = "what enters the block" if last.x is not block.input else "what leaves it"
        return f"the addition {last.parts[-1].addition.name} is of the form x + f(x), but {what} is another value"
    return "it has no addition of two activations"


def chains_of(residuals: tuple[Residual, ...]) -> Iterator[tuple[Residual, ...]]:
    """Maximal runs of residual blocks, each of which alone reads what the one before gives.

    All blocks of a run are post-activation, or none is. Of a block and another within it, that begin at one value, the
    outer one continues a run, since it reads that value too.
    """
    starting: dict[fx.Node, list[Residual]] = {}
    for residual in residuals:
        starting.setdefault(residual.x, []).append(residual)
    taken: set[Residual] = set()
    for residual in residuals:
        if residual in taken:
            continue
        run = [residual]
        while (then := _next(run[-1], starting)) is not None and then not in taken:
            taken.add(then)
            if run[-1].post is None and then.post is not None:
                then = dataclasses.replace(then, parts=(*then.parts[:-1], then.parts[-1].without_post()))
            run.append(then)
        yield tuple(run)


def _next(residual: Residual, starting: Mapping[fx.Node, list[Residual]]) -> Residual | None:
    """The block that alone reads what this one gives, and is post-activation where this one is."""
    for then in starting.get(residual.output, ()):
        alone = set(then.nodes).issuperset(residual.output.users)
        if alone and not (residual.post is not None and then.post is None):
            return then
    return None


def _copy(graph: fx.Graph, part: Part, known: dict[fx.Node, fx.Node], name: str | None) -> fx.Node:
    for node in part.nodes:
        label = name if node is part.branch and name else node.name
        args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
        known[node] = graph.create_node(node.op, node.target, args, kwargs, name=label)
    return known[part.branch]
