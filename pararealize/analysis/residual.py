"""Flow -> Residuals, its blocks of the form x + f(x); or a Block -> Residual, or the reason why it is none.

An addition of two activations is a residual block when one operand dominates the other (``addition.py``). A sum that
only a ReLU reads is a post-activation block, which ends at that ReLU. A projection shortcut makes none. A transformer's
layer is two such blocks in a row, or one:

    x + attn(x) = u,  u + mlp(u)             as one block:   f(x) = attn(x) + mlp(x + attn(x))
"""

from __future__ import annotations

import dataclasses
import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from torch import fx

from pararealize.tracing.captured import Capture

from .addition import Addition, additions_of
from .blocks import Block, BlockChain
from .flow import Flow, module_path, numbered

__all__ = ["NotResidual", "Residual", "Residuals", "chains_of", "find_residuals", "one_calls", "residual_of"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Residual:
    """A block x + f(x), or relu(x + f(x)): one addition, or several in a row taken as one.

    Attributes:
        name: the qualified name of the module it stands in, with ``#2`` for a second one there.
        additions: in execution order; with two of them, f(x) = f_1(x) + f_2(x + f_1(x)).
    """

    name: str
    additions: tuple[Addition, ...]

    @property
    def x(self) -> fx.Node:
        """The node that enters."""
        return self.additions[0].x

    @property
    def output(self) -> fx.Node:
        """The node that leaves."""
        return self.additions[-1].output

    @property
    def post(self) -> fx.Node | None:
        """The ReLU behind the last addition of a post-activation block."""
        return self.additions[-1].post

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        """Every node of the block, additions and shortcut and ReLU included."""
        return tuple(node for addition in self.additions for node in addition.all_nodes)

    @property
    def context(self) -> tuple[fx.Node, ...]:
        """What f reads from outside besides x: parameters, masks, sizes."""
        inside = {*self.nodes, self.x}
        reads = (a for addition in self.additions for node in addition.nodes for a in node.all_input_nodes)
        return tuple(dict.fromkeys(argument for argument in reads if argument not in inside))

    def graph(self) -> fx.Graph:
        """A graph of f alone, called with x and its context; parameters that are read as such stay ``get_attr``."""
        graph = fx.Graph()
        z = graph.placeholder("x")
        copies = {
            node: graph.node_copy(node) if node.op == "get_attr" else graph.placeholder(node.name)
            for node in self.context
        }
        graph.output(self.write(graph, z, copies))
        return graph

    def write(self, graph: fx.Graph, z: fx.Node, copies: Mapping[fx.Node, fx.Node], name: str | None = None) -> fx.Node:
        """Write f(z) at the end of a graph.

        Args:
            graph: where to.
            z: that graph's node for f's argument.
            copies: from nodes that f reads besides, to that graph's nodes.
            name: a name for the node of f's value.

        Returns:
            The node of f(z).
        """
        u, total = z, None
        for addition in self.additions:
            copied = {**copies, addition.x: u}
            for node in addition.nodes:
                label = name if node is addition.branch and len(self.additions) == 1 else None
                args, kwargs = fx.map_arg((node.args, node.kwargs), copied.__getitem__)
                copied[node] = graph.create_node(node.op, node.target, args, kwargs, name=label or node.name)
            k = copied[addition.branch]
            total = k if total is None else graph.create_node("call_function", operator.add, (total, k), name=name)
            if addition is not self.additions[-1]:
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

    blocks: tuple[Residual, ...]
    refusals: tuple[NotResidual, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, (*self.blocks, *self.refusals)))


def find_residuals(flow: Flow) -> Residuals:
    """Every residual block of a network, blocks within blocks too.

    Example:
        >>> import torch
        >>> from pararealize import capture
        >>> from pararealize.analysis import flow_of
        >>> from pararealize.models import resnet20
        >>> residuals = find_residuals(flow_of(capture(resnet20(), torch.randn(2, 3, 32, 32))))
        >>> print(residuals.blocks[0])
        stage1.0: x + f(x), x 16×32×32
        >>> print(residuals.refusals[0])
        stage2.0: its shortcut is not the identity but stage2.0.projection
    """
    blocks: list[Residual] = []
    refusals: list[NotResidual] = []
    counts: Counter[str] = Counter()
    for node, addition in additions_of(flow):
        name = module_path(node)
        if isinstance(addition, str):
            refusals.append(NotResidual(name=name, reason=addition))
            continue
        blocks.append(Residual(name=numbered(name, counts), additions=(addition,)))
    return Residuals(blocks=tuple(blocks), refusals=tuple(refusals))


def residual_of(chain: BlockChain, block: Block, residuals: Residuals | None = None) -> Residual | NotResidual:
    """A block as x + f(x), with the residuals in a row within it taken as one.

    Args:
        chain: the network's blocks.
        block: one of them.
        residuals: those of ``chain.flow``, where the caller has them.

    Example:
        >>> import torch
        >>> from pararealize import capture, find_blocks
        >>> from pararealize.models import resnet20
        >>> chain = find_blocks(capture(resnet20(), torch.randn(2, 3, 32, 32)))
        >>> [str(residual_of(chain, block)) for block in chain.blocks[2:4]]
        ['stage1.2: x + f(x), x 16×32×32', 'stage2.0: its shortcut is not the identity but stage2.0.projection']
    """
    residuals = residuals or find_residuals(chain.flow)
    inside = set(block.nodes)
    beginning = _by_beginning(residual for residual in residuals.blocks if residual.additions[0].sum in inside)
    additions = _row(block.input, block.output, beginning)
    if additions is None:
        return NotResidual(name=block.name, reason=_why_not(block, residuals))
    if any(addition.post is not None for addition in additions[:-1]):
        reason = f"it is {len(additions)} residual blocks with a ReLU between them, which are no one x + f(x)"
        return NotResidual(name=block.name, reason=reason)
    return Residual(name=block.name, additions=additions)


def _by_beginning(residuals: Iterable[Residual]) -> Mapping[fx.Node, list[Residual]]:
    """Residual blocks by the node that enters them."""
    beginning: dict[fx.Node, list[Residual]] = {}
    for residual in residuals:
        beginning.setdefault(residual.x, []).append(residual)
    return beginning


def _row(start: fx.Node, end: fx.Node, beginning: Mapping[fx.Node, list[Residual]]) -> tuple[Addition, ...] | None:
    """Additions that lead from one node to another, each beginning where the one before ends."""
    for residual in beginning.get(start, ()):
        for addition in (residual.additions[0], residual.additions[0].without_post()):
            if addition.output is end:
                return (addition,)
        rest = _row(residual.output, end, beginning)
        if rest is not None:
            return residual.additions + rest
    return None


def _why_not(block: Block, residuals: Residuals) -> str:
    inside = set(block.nodes)
    reasons = [r.reason for r in residuals.refusals if r.name == block.name or r.name.startswith(f"{block.name}.")]
    if reasons:
        return reasons[-1]
    within = [residual for residual in residuals.blocks if residual.additions[0].sum in inside]
    if within:
        last = within[-1]
        what = "what enters the block" if last.x is not block.input else "what leaves it"
        return f"the addition {last.additions[-1].sum.name} is of the form x + f(x), but {what} is another value"
    return "it has no addition of two activations"


def chains_of(residuals: tuple[Residual, ...]) -> Iterator[tuple[Residual, ...]]:
    """Maximal runs of residual blocks, each of which alone reads what the one before gives.

    All blocks of a run are post-activation, or none is. Of a block and another within it, that begin at one value, the
    outer one continues a run, since it reads that value too.
    """
    beginning = _by_beginning(residuals)
    continuations: set[Residual] = set()
    for residual in residuals:
        if residual in continuations:
            continue
        run = [residual]
        while (successor := _successor(run[-1], beginning)) is not None and successor not in continuations:
            continuations.add(successor)
            if run[-1].post is None and successor.post is not None:
                # the run ends behind its last sum: the ReLU there belongs to what follows
                last = successor.additions[-1].without_post()
                successor = dataclasses.replace(successor, additions=(*successor.additions[:-1], last))
            run.append(successor)
        yield tuple(run)


def _successor(residual: Residual, beginning: Mapping[fx.Node, list[Residual]]) -> Residual | None:
    """The block that alone reads what this one gives, and is post-activation where this one is."""
    for successor in beginning.get(residual.output, ()):
        alone = set(successor.nodes).issuperset(residual.output.users)
        if alone and not (residual.post is not None and successor.post is None):
            return successor
    return None


def one_calls(captured: Capture) -> str:
    """A sentence on the modules that were recorded as one call each, and why; empty where there are none."""
    names: dict[str, list[str]] = {}
    for name, reason in captured.opaque.items():
        names.setdefault(reason, []).append(name)
    parts = []
    for reason, of in list(names.items())[:2]:
        more = f" and {len(of) - 3} more" if len(of) > 3 else ""
        parts.append(f"{', '.join(of[:3])}{more} ({reason})")
    if not parts:
        return ""
    return f". Within modules that are one call no addition is seen: {'; '.join(parts)}; take what makes them so out"
