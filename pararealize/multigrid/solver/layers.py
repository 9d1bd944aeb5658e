"""Capture -> the network as a stem, layers in a row, and a head: what multigrid in depth works on.

    inputs ── stem ──┬── u_0 ── f ── f ── f ── transition ── f ── f ── u_M ── head ── output
                     └── context (masks, positions, conditioning) ── read by every layer and the head

A residual block ``u + f(u)``, or ``relu(u + f(u))``, is a time step. What stands between two chains of them is a layer
as well, but a fixed one. A chain is taken only where one activation alone is alive before and after each of its
blocks; other blocks stay part of the stem, of a transition or of the head, where they are computed as they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import fx, nn

from pararealize.analysis.context import context_of
from pararealize.analysis.flow import Flow, flow_of, unfit
from pararealize.analysis.residual import NotResidual, Residual, Residuals, chains_of, find_residuals, one_calls
from pararealize.errors import MultigridError
from pararealize.network.pieces import clone_changing_outputs, clone_overwritten
from pararealize.table import quantity
from pararealize.tracing.call_signature import CallSignature
from pararealize.tracing.captured import Capture
from pararealize.tracing.extraction import subgraph
from pararealize.tracing.hooks import hook_of
from pararealize.tracing.layouts import lay_out
from pararealize.tracing.random_calls import drawn_repeatedly, draws
from pararealize.tracing.regions import keep_regions

__all__ = ["BlockSelection", "Layer", "Layers", "find_layers", "select_blocks"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer, as a graph called with u and its context.

    Attributes:
        name: the residual block's name, or ``"to NODE"`` for a transition.
        graph: the graph of f, where it is a time step; of the whole map where it is fixed.
        reads: which of the network's contexts it is called with, by their numbers.
        fixed: whether it is a transition.
        post: whether a ReLU follows the sum.
        random: whether it may draw random numbers.
        random_in_eval: whether it may in eval mode, too: by dropout that is always on, by noise, or within ``opaque``.
        opaque: whether it calls a module that was not looked into.
    """

    name: str
    graph: fx.Graph
    reads: tuple[int, ...]
    fixed: bool
    post: bool
    random: bool
    random_in_eval: bool
    opaque: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """A network in layers.

    Attributes:
        call: how the network is called.
        stem: the graph from the tensors of a call to ``(u_0, *context)``.
        layers: time steps and transitions in order.
        head: the graph from ``(u_M, *context)``, with the contexts of ``head_reads``, to the output.
        head_reads: the contexts that it is called with.
        left: additions and residual blocks that are no time steps, and why.
    """

    call: CallSignature
    stem: fx.Graph
    layers: tuple[Layer, ...]
    head: fx.Graph
    head_reads: tuple[int, ...]
    left: tuple[NotResidual, ...]

    @property
    def fixed(self) -> tuple[bool, ...]:
        """For every layer, whether it is a transition."""
        return tuple(layer.fixed for layer in self.layers)

    def __str__(self) -> str:
        words = []
        for fixed, run in itertools.groupby(self.layers, key=lambda layer: layer.fixed):
            names = [layer.name for layer in run]
            ends = names[0] if len(names) == 1 else f"{names[0]} – {names[-1]}"
            words.append("a transition" if fixed else f"{quantity(len(names), 'block')} ({ends})")
        return f"stem, {', '.join(words)}, head"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSelection:
    """The residual blocks of a network that are time steps.

    Attributes:
        flow: the network's values in order.
        blocks: the time steps, in order.
        refusals: additions and residual blocks that are none, and why.
    """

    flow: Flow
    blocks: tuple[Residual, ...]
    refusals: tuple[NotResidual, ...]


def find_layers(captured: Capture) -> Layers:
    """The residual blocks of a network as time steps, and what stands before, between and behind them.

    Raises:
        MultigridError: there is no chain of residual blocks, all of them are kept apart by hooks or by modules that are
            one call, or random numbers are read by several parts.

    Example:
        >>> import torch
        >>> from pararealize import capture
        >>> from pararealize.models import resnet20
        >>> print(find_layers(capture(resnet20(), torch.randn(2, 3, 32, 32))))
        stem, 3 blocks (stage1.0 – stage1.2), a transition, 2 blocks (stage2.1 – stage2.2), a transition, 2 blocks \
(stage3.1 – stage3.2), head
    """
    selection = select_blocks(captured, least=2)
    _check_chains(captured, selection)
    layers = _cut(selection)
    graphs = {"the stem": layers.stem, "the head": layers.head} | {layer.name: layer.graph for layer in layers.layers}
    if repeated := drawn_repeatedly(graphs, captured.model.get_submodule):
        raise MultigridError(
            f"random numbers are read by several parts of the network, each of which would draw its own: "
            f"{'; '.join(repeated)}; draw them where they are read, or make them an input of the model"
        )
    for graph in graphs.values():
        keep_regions(graph)  # without fake values, which would keep the capture alive
    return layers


def select_blocks(captured: Capture, *, least: int = 1) -> BlockSelection:
    """The residual blocks that are time steps: one activation alone is alive before and after each of them.

    Raises:
        MultigridError: there are fewer than ``least``.
    """
    flow = flow_of(captured)
    residuals = find_residuals(flow)
    selection = _select(flow, residuals)
    if residuals.refusals:  # once a value that all blocks read counts as context, one activation alone may be alive
        wider = flow_of(captured, broadcast=True)
        selection = max(selection, _select(wider, find_residuals(wider)), key=lambda some: len(some.blocks))
    if len(selection.blocks) < least:
        raise MultigridError(_too_few(captured, selection))
    return selection


def _check_chains(captured: Capture, selection: BlockSelection) -> None:
    """Refuse blocks of which no two are in a row where hooks behind them, or modules that are one call, may be why."""
    blocks, module_of = selection.blocks, captured.graph_module.get_submodule
    if any(after.x is before.output for before, after in itertools.pairwise(blocks)):
        return
    behind = [str(node.target) for block in blocks for node in block.output.users if node.op == "call_module"]
    kinds = {path: type(module_of(path)) for path in behind}
    hooks = {path: hook_of(module_of(path)) for path, kind in kinds.items() if kind in (nn.ReLU, nn.Identity)}
    if listed := [f"{path} ({kinds[path].__name__}) has a {hook}" for path, hook in hooks.items() if hook]:
        more = f", and {len(listed) - 3} more" if len(listed) > 3 else ""
        raise MultigridError(
            f"hooks stand between the residual blocks of {type(captured.model).__name__}: "
            f"{', '.join(listed[:3])}{more}. Coarse steps would not call them, and no two blocks are in a row without; "
            "remove the hooks, or register them on layers within the blocks"
        )
    if calls := one_calls(captured):
        raise MultigridError(
            f"of the residual blocks of {type(captured.model).__name__} no two are in a row, as time steps of "
            f"multigrid have to be{calls}"
        )


def _too_few(captured: Capture, selection: BlockSelection) -> str:
    name, blocks, refusals = type(captured.model).__name__, selection.blocks, selection.refusals
    what = f"one residual block alone ({blocks[0].name})" if blocks else "no chain of residual blocks x + f(x)"
    reasons = f": {'; '.join(map(str, refusals[:3]))}" if refusals else ", and no addition of two activations at all"
    return (
        f"{name} has {what}, and multigrid needs time steps in a row{reasons}{one_calls(captured)}. Take a network "
        "that has them, with the batch first in all values between; a layer that torch keeps as one module "
        "(nn.TransformerEncoderLayer) has to be written out"
    )


# Selecting the blocks -----------------------------------------------------------------------------------------------


def _select(flow: Flow, residuals: Residuals) -> BlockSelection:
    """Residual blocks with one activation alive around them; where two share nodes, the one in the longer chain."""
    position = {node: i for i, node in enumerate(flow.order)}
    interfaces = _sole_activations(flow)
    ready = max((position[node] for node in flow.broadcast), default=-1)  # from here on all shared values are there
    owners: dict[fx.Node, Residual] = {}
    refusals = [*residuals.refusals]
    for chain in sorted(chains_of(residuals.blocks), key=lambda run: (-len(run), -len(run[0].nodes))):
        for block in chain:
            entry = position.get(block.x, -1)  # -1: an input, which stands before all that is computed
            inside = flow.order[entry + 1 : position[block.output] + 1]
            other = next((owners[node] for node in block.nodes if node in owners), None)
            if other is not None:
                reason = f"{other.name}, in a longer chain, shares with it"
            elif {block.x, block.output} <= interfaces and entry >= ready and set(inside) <= set(block.nodes):
                owners.update(dict.fromkeys(block.nodes, block))
                continue
            else:
                outside = [node for node in (block.x, block.output) if node not in interfaces]
                reason = next(
                    (
                        f"{node.name}, before or behind it: {why.fact}"
                        for node in outside
                        if (why := unfit(node, flow.capture))
                    ),
                    "other activations are alive beside the one that enters, or that leaves",
                )
            refusals.append(NotResidual(name=block.name, reason=reason))
    blocks = sorted(dict.fromkeys(owners.values()), key=lambda block: position[block.output])
    return BlockSelection(flow=flow, blocks=tuple(blocks), refusals=tuple(refusals))


def _sole_activations(flow: Flow) -> set[fx.Node]:
    """The activations that are alone alive at some point, and inputs that are read as they are."""
    inputs = {node for node, dependence in flow.depends.items() if dependence.inputs and not dependence.parameters}
    return inputs | {_carried(flow, i) for i in flow.cuts}


def _carried(flow: Flow, position: int) -> fx.Node:
    """The one activation that is alive after a cut."""
    for i in range(position, -1, -1):
        if flow.last_read[i] > position and (position < flow.start or flow.order[i] not in flow.broadcast):
            return flow.order[i]
    raise AssertionError(f"nothing is alive after {flow.order[position]}")


# Cutting ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _LayerNodes:
    """What becomes one layer: the nodes of a residual block's branch, or of all between two chains."""

    entry: fx.Node
    result: fx.Node
    nodes: tuple[fx.Node, ...]
    block: Residual | None


def _cut(selection: BlockSelection) -> Layers:
    """The network's graph as stem, layers and head."""
    flow, blocks = selection.flow, selection.blocks
    position = {node: i for i, node in enumerate(flow.order)}
    sections = list(_sections(selection, position))
    entry, last, output = blocks[0].x, blocks[-1].output, flow.capture.graph.output_node()
    before, behind = flow.order[: position.get(entry, -1) + 1], flow.order[position[last] + 1 :]
    shared: frozenset[fx.Node] = frozenset()
    reads = [context_of(flow, section.nodes, section.entry, shared) for section in sections]
    head_reads = context_of(flow, (*behind, output), last, shared)
    context = list(dict.fromkeys(node for nodes in (*reads, head_reads) for node in nodes))
    number = {node: i for i, node in enumerate(context)}
    layers = []
    for section, nodes in zip(sections, reads, strict=True):
        graph = subgraph((section.entry, *nodes), section.result, ("u",), besides=section.nodes)
        layers.append(_layer(flow.capture, section, graph, tuple(number[node] for node in nodes)))
    inputs = [node for node in flow.capture.graph.find_nodes(op="placeholder") if "plain" not in node.meta]
    stem = subgraph(inputs, (entry, *context), besides=before)
    head = subgraph((last, *head_reads), output, ("u",), besides=behind)
    for graph in (*(layer.graph for layer in layers), head):
        lay_out(graph)
    for graph in (stem, *(layer.graph for layer in layers), head):
        clone_overwritten(graph, first=True)
    clone_changing_outputs(stem)
    return Layers(
        call=flow.capture.example.call,
        stem=stem,
        layers=tuple(layers),
        head=head,
        head_reads=tuple(number[node] for node in head_reads),
        left=selection.refusals,
    )


def _sections(selection: BlockSelection, position: Mapping[fx.Node, int]) -> Iterator[_LayerNodes]:
    """Every block, and what lies between a block and the next where that does not begin where the one ends."""
    here = selection.blocks[0].x
    for block in selection.blocks:
        if block.x is not here:
            between = selection.flow.order[position[here] + 1 : position[block.x] + 1]
            yield _LayerNodes(here, block.x, tuple(between), None)
        addition = block.additions[0]
        yield _LayerNodes(block.x, addition.branch, addition.nodes, block)
        here = block.output


def _layer(captured: Capture, section: _LayerNodes, graph: fx.Graph, reads: tuple[int, ...]) -> Layer:
    block, module_of = section.block, captured.graph_module.get_submodule
    opaque = any(node.op == "call_module" and str(node.target) in captured.opaque for node in graph.nodes)
    return Layer(
        name=block.name if block is not None else f"to {section.result.name}",
        graph=graph,
        reads=reads,
        fixed=block is None,
        post=block is not None and block.post is not None,
        random=opaque or any(draws(node, module_of) for node in graph.nodes),
        random_in_eval=opaque or any(draws(node, module_of, training=False) for node in graph.nodes),
        opaque=opaque,
    )
