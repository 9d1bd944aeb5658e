"""Capture -> the network as a stem, layers in a row, and a head: what multigrid in depth works on.

    inputs ── stem ──┬── u_0 ── f ── f ── f ── transition ── f ── f ── u_M ── head ── output
                     └── context (masks, positions, conditioning) ── read by every layer and the head

A residual block ``u + f(u)``, or ``relu(u + f(u))``, is a time step. What stands between two chains of them is a layer
as well, but a fixed one. A chain is taken only where one activation alone is alive before and after each of its
blocks; other blocks stay part of the stem, of a transition or of the head, where they are computed as they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import fx

from pararealize.analysis.context import context_of
from pararealize.analysis.flow import Flow, flow_of
from pararealize.analysis.residual import NotResidual, Residual, Residuals, chains_of, find_residuals
from pararealize.errors import MultigridError
from pararealize.network.pieces import clone_changing_outputs, clone_overwritten
from pararealize.tracing.captured import Capture
from pararealize.tracing.operations import check_plain
from pararealize.tracing.subgraph import drawn_repeatedly, draws, subgraph

__all__ = ["Layer", "Layers", "check_plain_inputs", "find_layers", "time_steps"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer, as a graph called with u and its context.

    Attributes:
        name: of the residual block, or ``"to NODE"`` for a transition.
        graph: of f, where it is a time step; of the whole map where it is fixed.
        reads: which of the network's contexts it is called with, by their numbers.
        fixed: whether it is a transition.
        post: whether a ReLU follows the sum.
        random: whether it may draw random numbers.
        opaque: whether it calls a module that was not looked into.
    """

    name: str
    graph: fx.Graph
    reads: tuple[int, ...]
    fixed: bool
    post: bool
    random: bool
    opaque: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """A network in layers.

    Attributes:
        stem: from the inputs to ``(u_0, *context)``.
        layers: the rows.
        head: from ``(u_M, *context)``, those of ``head_reads``, to the output.
        head_reads: the contexts that it is called with.
        left: additions and residual blocks that are no time steps, and why.
    """

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
            words.append("a transition" if fixed else f"{len(names)} block{'s' if len(names) > 1 else ''} ({ends})")
        return f"stem, {', '.join(words)}, head"


def find_layers(captured: Capture) -> Layers:
    """The residual blocks of a network as time steps, and what stands before, between and behind them.

    Raises:
        MultigridError: there is no chain of residual blocks, or random numbers are read by several parts.

    Example:
        >>> import torch
        >>> from pararealize import capture
        >>> from pararealize.models import resnet20
        >>> print(find_layers(capture(resnet20(), torch.randn(2, 3, 32, 32))))
        stem, 3 blocks (stage1.0 – stage1.2), a transition, 2 blocks (stage2.1 – stage2.2), a transition, 2 blocks \
(stage3.1 – stage3.2), head
    """
    flow, chosen, left = time_steps(captured, least=2)
    return _Cutter(flow, chosen, left).layers()


def time_steps(captured: Capture, *, least: int = 1) -> tuple[Flow, list[Residual], list[NotResidual]]:
    """The network's values in order, the residual blocks that are time steps, and those that are none, and why.

    Raises:
        MultigridError: there are fewer than ``least``.
    """
    flow = flow_of(captured)
    residuals = find_residuals(flow)
    chosen, left = _choose(flow, residuals)
    if residuals.refusals:
        wider = flow_of(captured, broadcast=True)
        others = find_residuals(wider)
        more, still_left = _choose(wider, others)
        if len(more) > len(chosen):
            flow, residuals, chosen, left = wider, others, more, still_left
    left = [*residuals.refusals, *left]
    if len(chosen) < least:
        raise MultigridError(_nothing(captured, chosen, left))
    return flow, chosen, left


def _nothing(captured: Capture, chosen: Sequence[Residual], left: Sequence[NotResidual]) -> str:
    name = type(captured.model).__name__
    what = f"one residual block alone ({chosen[0].name})" if chosen else "no chain of residual blocks x + f(x)"
    reasons = f": {'; '.join(map(str, left[:3]))}" if left else ", and no addition of two activations at all"
    return (
        f"{name} has {what}, and multigrid needs time steps in a row{reasons}. Take a network that has them; a layer "
        "that torch keeps as one module (nn.TransformerEncoderLayer) has to be written out"
    )


# Choosing the blocks ------------------------------------------------------------------------------------------------


def _choose(flow: Flow, residuals: Residuals) -> tuple[list[Residual], list[NotResidual]]:
    """Residual blocks that follow one another with one activation alive between them, and why others are left."""
    alone = _alone(flow)
    taken: dict[fx.Node, Residual] = {}
    chosen: list[Residual] = []
    left: list[NotResidual] = []
    place = {node: i for i, node in enumerate(flow.order)}
    latest = max((place[node] for node in flow.broadcast), default=-1)
    for chain in sorted(chains_of(residuals.blocks), key=lambda run: (-len(run), -len(run[0].nodes))):
        for residual in chain:
            clash = next((taken[node] for node in residual.nodes if node in taken), None)
            if clash is not None:
                left.append(NotResidual(name=residual.name, reason=f"{clash.name}, in a longer chain, shares with it"))
            elif not _stands_alone(flow, residual, alone, place, latest):
                reason = "other activations are alive beside the one that enters, or that leaves"
                left.append(NotResidual(name=residual.name, reason=reason))
            else:
                chosen.append(residual)
                taken.update((node, residual) for node in residual.nodes)
    return sorted(chosen, key=lambda residual: place[residual.output]), left


def _alone(flow: Flow) -> set[fx.Node]:
    """The activations that are alone alive at some point, and inputs that are read as they are."""
    found = {node for node, (inputs, parameters) in flow.depends.items() if inputs and not parameters}
    return found | {_carried(flow, i) for i in flow.cuts}


def _carried(flow: Flow, position: int) -> fx.Node:
    """The one activation that is alive after a cut."""
    for i in range(position, -1, -1):
        if flow.last_read[i] > position and (position < flow.start or flow.order[i] not in flow.broadcast):
            return flow.order[i]
    raise AssertionError(f"nothing is alive after {flow.order[position]}")


def _stands_alone(flow: Flow, residual: Residual, alone: set[fx.Node], place: dict[fx.Node, int], latest: int) -> bool:
    """Whether one activation enters, one leaves, and nothing else is computed in between."""
    enters = place.get(residual.x, -1)
    inside = flow.order[enters + 1 : place[residual.output] + 1]
    own = {*residual.nodes}
    return residual.x in alone and residual.output in alone and enters >= latest and all(node in own for node in inside)


# Cutting ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Cutter:
    flow: Flow
    blocks: Sequence[Residual]
    left: Sequence[NotResidual]

    def layers(self) -> Layers:
        """The graphs."""
        graph = self.flow.capture.graph
        place = {node: i for i, node in enumerate(self.flow.order)}
        parts = list(self._parts(place))
        last = self.blocks[-1].output
        output = graph.output_node()
        behind = self.flow.order[place[last] + 1 :]
        nothing: frozenset[fx.Node] = frozenset()
        reads = [context_of(self.flow, nodes, x, nothing) for x, _, nodes, _ in parts]
        head_reads = context_of(self.flow, (*behind, output), last, nothing)
        every = list(dict.fromkeys(node for read in (*reads, head_reads) for node in read))
        number = {node: i for i, node in enumerate(every)}
        layers = []
        for (x, y, nodes, residual), read in zip(parts, reads, strict=True):
            piece = subgraph((x, *read), y, ("u",), besides=nodes)
            clone_overwritten(piece, first=True)
            layers.append(self._layer(piece, residual, y, tuple(number[node] for node in read)))
        inputs = [node for node in graph.nodes if node.op == "placeholder"]
        entry = self.blocks[0].x
        before = self.flow.order[: place.get(entry, -1) + 1]
        stem = subgraph(inputs, (entry, *every), besides=before)
        check_plain_inputs(stem, inputs)
        clone_overwritten(stem, first=True)
        clone_changing_outputs(stem)
        head = subgraph((last, *head_reads), output, ("u",), besides=behind)
        clone_overwritten(head, first=True)
        graphs = {"the stem": stem, "the head": head} | {layer.name: layer.graph for layer in layers}
        if repeated := drawn_repeatedly(graphs, self.flow.capture.model.get_submodule):
            raise MultigridError(
                f"random numbers are read by several parts of the network, each of which would draw its own: "
                f"{'; '.join(repeated)}; draw them where they are read, or make them an input of the model"
            )
        for piece in graphs.values():
            for node in piece.nodes:
                node.meta.clear()
        return Layers(
            stem=stem,
            layers=tuple(layers),
            head=head,
            head_reads=tuple(number[node] for node in head_reads),
            left=tuple(self.left),
        )

    def _parts(
        self, place: dict[fx.Node, int]
    ) -> Iterator[tuple[fx.Node, fx.Node, tuple[fx.Node, ...], Residual | None]]:
        """(what enters, what leaves, the nodes, the residual block if it is one) of every layer in order."""
        here = self.blocks[0].x
        for residual in self.blocks:
            if residual.x is not here:
                between = self.flow.order[place[here] + 1 : place[residual.x] + 1]
                yield here, residual.x, tuple(between), None
            yield residual.x, residual.additions[0].branch, residual.additions[0].nodes, residual
            here = residual.output

    def _layer(self, graph: fx.Graph, residual: Residual | None, y: fx.Node, reads: tuple[int, ...]) -> Layer:
        module_of = self.flow.capture.graph_module.get_submodule
        opaque = self.flow.capture.opaque
        hidden = any(node.op == "call_module" and str(node.target) in opaque for node in graph.nodes)
        return Layer(
            name=residual.name if residual is not None else f"to {y.name}",
            graph=graph,
            reads=reads,
            fixed=residual is None,
            post=residual is not None and residual.post is not None,
            random=hidden or any(draws(node, module_of) for node in graph.nodes),
            opaque=hidden,
        )


def check_plain_inputs(graph: fx.Graph, inputs: Sequence[fx.Node]) -> None:
    """Let the stem refuse plain inputs other than those that the network was captured with."""
    copies = [node for node in graph.nodes if node.op == "placeholder"]
    with graph.inserting_after(copies[-1]):
        for source, copied in zip(inputs, copies, strict=True):
            check_plain(graph, source, copied)
