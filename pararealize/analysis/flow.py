"""Capture -> Flow: the order of the state, what is context, and the cut points, where one activation alone is alive.

Every value of the graph is one of

    constant   depends on neither inputs nor parameters (and sizes, which depend on shapes only)
    context    X: depends on the inputs through no parameter (masks, position ids);
               P: depends on parameters but on no input (position tables, normalised weights)
    state      S: depends on both

In execution order over the state, alive(i) = {t : born at or before i, last read after i}. A cut stands after i where
alive(i) is a single tensor: then every path from input to output passes through it, i.e. it dominates the output.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import fx

from pararealize.tracing.captured import Capture
from pararealize.tracing.size_nodes import size_of
from pararealize.tracing.type_nodes import reads_no_value

from .signature import weights_of

__all__ = [
    "Dependence",
    "Flow",
    "RefusedCut",
    "Unfit",
    "dependencies",
    "described",
    "flow_of",
    "living",
    "module_path",
    "numbered",
    "unfit",
]

_MOST_BROADCAST = 8  # more values alive at once than this is no broadcast but a growing carry


class Dependence(NamedTuple):
    """What a value depends on."""

    inputs: bool
    parameters: bool

    @property
    def on_both(self) -> bool:
        """State: computed from the network's inputs with its parameters."""
        return self.inputs and self.parameters

    @property
    def on_parameters_alone(self) -> bool:
        """A table of positions, a normalised weight."""
        return self.parameters and not self.inputs


class Unfit(NamedTuple):
    """Why a value cannot be an interface, and what would help; without a remedy where a later value tells more."""

    fact: str
    remedy: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RefusedCut:
    """A point between two operations where the network cannot be cut, and the tensors that forbid it."""

    after: str
    module: str
    why: str
    alive: tuple[str, ...]

    def __str__(self) -> str:
        return f"after {self.after} ({self.module or 'the model'}): {self.why}: {', '.join(self.alive)}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """The state of a captured network in execution order.

    Attributes:
        capture: the network.
        order: the state's nodes, in execution order.
        cuts: positions in ``order`` after which exactly one activation is alive.
        broadcast: state that is read by many later operations and treated as context (``start`` is behind its birth).
        start: the first position that may belong to a block.
        depends: what every node of the graph depends on.
        last_read: for each position, the last position that reads its value.
    """

    capture: Capture
    order: tuple[fx.Node, ...]
    cuts: tuple[int, ...]
    broadcast: tuple[fx.Node, ...]
    start: int
    depends: dict[fx.Node, Dependence]
    last_read: tuple[int, ...]

    def passed_over(self, within: Iterable[fx.Node] | None = None) -> str:
        """Why one value that is alone alive is no interface, at most such places, and what would help.

        Args:
            within: nodes to look after; all that weights follow where left out.

        Returns:
            A clause; empty where such places are no more than the cut points there.
        """
        module_of = self.capture.graph_module.get_submodule
        last = max((i for i, node in enumerate(self.order) if weights_of(node, module_of)), default=0)
        looked_at = set(self.order[:last] if within is None else within)
        places: dict[Unfit, list[fx.Node]] = {}
        for i, alive in living(self.last_read):
            nodes = [self.order[t] for t in alive if self.order[t] not in self.broadcast]
            if len(nodes) == 1 and self.order[i] in looked_at and (reason := unfit(nodes[0], self.capture)):
                places.setdefault(reason, []).append(nodes[0])
        places = {reason: nodes for reason, nodes in places.items() if reason.remedy}
        commonest = max(places, key=lambda reason: len(places[reason]), default=None)
        if commonest is None or len(places[commonest]) <= sum(self.order[i] in looked_at for i in self.cuts):
            return ""
        example = places[commonest][0]
        return (
            f"where one value alone is alive, such as {example.name} {tuple(example.meta['val'].shape)}, "
            f"{commonest.fact}; {commonest.remedy}"
        )

    def refused(self) -> Iterator[RefusedCut]:
        """Every point between two operations that is no cut, and why."""
        cuts = set(self.cuts)
        for i, alive in living(self.last_read):
            if i not in cuts and i < len(self.order) - 1:
                nodes = [self.order[t] for t in alive]
                if len(nodes) > 1:
                    why = f"{len(nodes)} activations are alive"
                else:
                    reason = unfit(nodes[0], self.capture)
                    why = reason.fact if reason else "it lies outside the region that can be cut"
                after, names = self.order[i], tuple(map(described, nodes))
                yield RefusedCut(after=after.name, module=module_path(after), why=why, alive=names)


def described(node: fx.Node) -> str:
    """A value's name and its sizes, the batch left out."""
    value = node.meta.get("val")
    shape = "×".join(map(str, value.shape[1:])) if isinstance(value, torch.Tensor) else type(value).__name__
    return f"{node.name} {shape}"


def module_path(node: fx.Node) -> str:
    """The qualified name of the innermost module whose forward holds a node; ``""`` for the model itself."""
    return str(next(reversed(node.meta.get("nn_module_stack", {"": None}))))


def numbered(name: str, counts: Counter[str]) -> str:
    """The name, with ``#2``, ``#3``, … where it was counted before."""
    counts[name] += 1
    return name if counts[name] == 1 else f"{name}#{counts[name]}"


def dependencies(graph: fx.Graph) -> dict[fx.Node, Dependence]:
    """For every node, whether its value depends on the inputs and on parameters."""
    depends: dict[fx.Node, Dependence] = {}
    module_of = graph.owning_module.get_submodule  # type: ignore[union-attr]
    for node in graph.nodes:
        if node.op == "placeholder":
            depends[node] = Dependence(isinstance(node.meta.get("val"), torch.Tensor), False)
        elif node.op == "get_attr":
            depends[node] = Dependence(False, bool(node.meta.get("trainable")))
        elif node.target is size_of or reads_no_value(node):  # of a shape or a type, whatever the values
            depends[node] = Dependence(False, False)
        else:
            arguments = [depends[argument] for argument in node.all_input_nodes]
            trainable = node.op == "call_module" and next(module_of(node.target).parameters(), None) is not None
            depends[node] = Dependence(
                any(argument.inputs for argument in arguments),
                trainable or any(argument.parameters for argument in arguments),
            )
    return depends


def flow_of(capture: Capture, *, broadcast: bool = False) -> Flow:
    """Order the state of a captured network and find its cut points.

    Args:
        capture: the network.
        broadcast: look for a region in which values born before it may be read as context, so that more cuts appear.
    """
    depends = dependencies(capture.graph)
    order = tuple(node for node in capture.graph.nodes if node.op != "output" and depends[node].on_both)
    position = {node: i for i, node in enumerate(order)}

    def read_position(user: fx.Node) -> int:
        """Never where it reads a size only; behind all where it is no state itself."""
        return -1 if user.target is size_of or reads_no_value(user) else position.get(user, len(position))

    last_read = tuple(max(map(read_position, node.users), default=i) for i, node in enumerate(order))
    liveness = _Liveness(order, last_read, capture)
    start, births = liveness.best_region() if broadcast else (0, frozenset())
    return Flow(
        capture=capture,
        order=order,
        cuts=tuple(liveness.cuts(start, births)),
        broadcast=tuple(order[i] for i in sorted(births)),
        start=start,
        depends=depends,
        last_read=last_read,
    )


def living(last_read: tuple[int, ...]) -> Iterator[tuple[int, list[int]]]:
    """For each position, the positions whose values are alive after it, in the order of their births.

    One sweep, as a register allocator's linear scan: a value enters at its birth and leaves at its last read, so that
    each step costs what changes plus the list that it gives.
    """
    alive: dict[int, None] = {}
    deaths: dict[int, list[int]] = {}
    for i, last in enumerate(last_read):
        for dead in deaths.pop(i, ()):
            alive.pop(dead, None)
        if last > i:
            alive[i] = None
            deaths.setdefault(last, []).append(i)
        yield i, list(alive)


def unfit(node: fx.Node, capture: Capture) -> Unfit | None:
    """Why a value that is alone alive cannot be an interface."""
    value, other = node.meta.get("val"), node.meta.get("other")
    if not isinstance(value, torch.Tensor):
        return Unfit("a tuple is alive, not one tensor")
    if not value.is_floating_point():
        remedy = "hand on real and imaginary parts, torch.view_as_real(x)" if value.is_complex() else "hand on floats"
        return Unfit(f"an interface of {value.dtype} cannot be corrected", remedy)
    if value.ndim < 2:
        return Unfit("it has no dimension beside the batch", "hand on values of (batch, features)")
    grows = other is not None and tuple(other.shape) == (value.shape[0] + 1, *value.shape[1:])
    if value.shape[0] != capture.batch or not (capture.fixed_batch or grows):
        return Unfit(
            "the batch is not its leading dimension",
            "hand on (batch, ...) from block to block: turn or reshape the value behind each, or build the model with "
            "the batch first (batch_first=True)",
        )
    return None


@dataclasses.dataclass(frozen=True, slots=True)
class _Liveness:
    """The state in execution order and where each value is read last; positions stand for the values born there."""

    order: tuple[fx.Node, ...]
    last_read: tuple[int, ...]
    capture: Capture

    def cuts(self, start: int, births: frozenset[int]) -> Iterator[int]:
        """Positions after which one activation is alive, ``births`` not counted from position ``start`` on."""
        for i, alive in living(self.last_read):
            carry = [t for t in alive if t not in births] if i >= start else alive
            if self.order[i].users and len(carry) == 1 and unfit(self.order[carry[0]], self.capture) is None:
                yield i  # what nothing reads (a norm that only counts) makes no interface

    def best_region(self) -> tuple[int, frozenset[int]]:
        """The point, and its older living values, that make the most later points cuts if those values are context.

        Values read throughout (a mask computed with parameters, an encoder's output that every decoder layer reads)
        are alive together from some point on and long after it. So the candidates are the sets of values alive at one
        point, with and without the youngest, which may be the carry itself; the 64 of the longest life are counted.
        """
        candidates: dict[frozenset[int], int] = {}
        for i, alive in living(self.last_read):
            if 2 <= len(alive) <= _MOST_BROADCAST:
                candidates.setdefault(frozenset(alive[:-1]), i)
                candidates.setdefault(frozenset(alive), i)
        longest = sorted(candidates, key=lambda births: min(self.last_read[t] - t for t in births), reverse=True)[:64]
        counts = {
            births: sum(i >= candidates[births] for i in self.cuts(candidates[births], births)) for births in longest
        }
        if not counts:
            return 0, frozenset()
        enough = 0.6 * max(counts.values())  # one value more may always win a few cuts, within the first block
        best = min((births for births in longest if counts[births] >= enough), key=lambda b: (len(b), candidates[b]))
        return candidates[best], best
