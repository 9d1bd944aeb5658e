"""Capture -> the order of its state, what is context, and the points at which exactly one activation is alive.

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
from collections.abc import Iterator

import torch
from torch import fx

from pararealize.tracing.captured import Capture
from pararealize.tracing.merging import size_of

__all__ = ["Flow", "RefusedCut", "flow_of"]

_MOST_BROADCAST = 8  # more values alive at once than this is no broadcast but a growing carry


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
        depends: for every node, whether it depends on (inputs, parameters).
        last_read: for each position, the last position that reads its value.
    """

    capture: Capture
    order: tuple[fx.Node, ...]
    cuts: tuple[int, ...]
    broadcast: tuple[fx.Node, ...]
    start: int
    depends: dict[fx.Node, tuple[bool, bool]]
    last_read: tuple[int, ...]

    def is_state(self, node: fx.Node) -> bool:
        """Whether a node is computed from inputs and parameters both, and is not broadcast."""
        return self.depends[node] == (True, True) and node not in self.broadcast

    def refused(self) -> Iterator[RefusedCut]:
        """Every point between two operations that is no cut, and why."""
        cuts = set(self.cuts)
        for i, alive in _sweep(self.last_read):
            if i not in cuts and i < len(self.order) - 1:
                names = tuple(self._describe(self.order[t]) for t in alive)
                why = self._why(alive)
                stack = self.order[i].meta.get("nn_module_stack", {"": None})
                yield RefusedCut(after=self.order[i].name, module=list(stack)[-1], why=why, alive=names)

    def _why(self, alive: list[int]) -> str:
        if len(alive) > 1:
            return f"{len(alive)} activations are alive"
        return _unfit(self.order[alive[0]], self.capture) or "it lies outside the region that can be cut"

    def _describe(self, node: fx.Node) -> str:
        value = node.meta.get("val")
        shape = "×".join(map(str, value.shape[1:])) if isinstance(value, torch.Tensor) else type(value).__name__
        return f"{node.name} {shape}"


def dependencies(graph: fx.Graph) -> dict[fx.Node, tuple[bool, bool]]:
    """For every node, whether its value depends on the inputs and on parameters."""
    depends: dict[fx.Node, tuple[bool, bool]] = {}
    module_of = graph.owning_module.get_submodule  # type: ignore[union-attr]
    for node in graph.nodes:
        if node.op == "placeholder":
            depends[node] = (isinstance(node.meta.get("val"), torch.Tensor), False)
        elif node.op == "get_attr":
            depends[node] = (False, bool(node.meta.get("trainable")))
        elif node.target is size_of:
            depends[node] = (False, False)
        else:
            inputs = [depends[argument] for argument in node.all_input_nodes]
            trainable = node.op == "call_module" and _has_parameters(module_of(node.target))
            depends[node] = (any(i for i, _ in inputs), trainable or any(p for _, p in inputs))
    return depends


def _has_parameters(module: torch.nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def flow_of(capture: Capture, *, broadcast: bool = False) -> Flow:
    """Order the state of a captured network and find its cut points.

    Args:
        capture: the network.
        broadcast: look for a region in which values born before it may be read as context, so that more cuts appear.
    """
    depends = dependencies(capture.graph)
    order = tuple(node for node in capture.graph.nodes if node.op != "output" and depends[node] == (True, True))
    position = {node: i for i, node in enumerate(order)}
    last = len(order)
    last_read = tuple(
        max((_reader(user, position, last) for user in node.users), default=i) for i, node in enumerate(order)
    )
    births: frozenset[int] = frozenset()
    start = 0
    if broadcast:
        start, births = _best_region(order, last_read, capture)
    cuts = tuple(_cut_positions(order, last_read, births, start, capture))
    return Flow(
        capture=capture,
        order=order,
        cuts=cuts,
        broadcast=tuple(order[i] for i in sorted(births)),
        start=start,
        depends=depends,
        last_read=last_read,
    )


def _reader(user: fx.Node, position: dict[fx.Node, int], last: int) -> int:
    """The position at which a user reads; the output and sizes computed for it read at the very end."""
    if user.target is size_of:
        return -1
    return position.get(user, last)


def _sweep(last_read: tuple[int, ...]) -> Iterator[tuple[int, list[int]]]:
    """For each position, the positions whose values are alive after it."""
    alive: dict[int, None] = {}
    dying: dict[int, list[int]] = {}
    for i, last in enumerate(last_read):
        for dead in dying.pop(i, ()):
            alive.pop(dead, None)
        if last > i:
            alive[i] = None
            dying.setdefault(last, []).append(i)
        yield i, list(alive)


def _cut_positions(
    order: tuple[fx.Node, ...], last_read: tuple[int, ...], broadcast: frozenset[int], start: int, capture: Capture
) -> Iterator[int]:
    for i, alive in _sweep(last_read):
        carry = [t for t in alive if t not in broadcast] if i >= start else alive
        if order[i].users and len(carry) == 1 and _unfit(order[carry[0]], capture) is None:
            yield i  # what nothing reads (a norm that only counts) makes no interface


def _unfit(node: fx.Node, capture: Capture) -> str | None:
    """Why a value that is alone alive cannot be an interface."""
    value, other = node.meta.get("val"), node.meta.get("other")
    if not isinstance(value, torch.Tensor):
        return "a tuple is alive, not one tensor"
    if not value.is_floating_point():
        return f"an interface of {value.dtype} cannot be corrected"
    if value.ndim < 2:
        return "it has no dimension beside the batch"
    grown = other is not None and tuple(other.shape) == (value.shape[0] + 1, *value.shape[1:])
    if value.shape[0] != capture.batch or not (capture.fixed_batch or grown):
        return "the batch is not its leading dimension"
    return None


def _best_region(
    order: tuple[fx.Node, ...], last_read: tuple[int, ...], capture: Capture
) -> tuple[int, frozenset[int]]:
    """The point whose older living values, taken as context, make the most later points cuts."""
    candidates: dict[frozenset[int], int] = {}
    for i, alive in _sweep(last_read):
        if 2 <= len(alive) <= _MOST_BROADCAST:
            candidates.setdefault(frozenset(alive[:-1]), i)
            candidates.setdefault(frozenset(alive), i)
    longest = sorted(candidates, key=lambda births: min(last_read[t] - t for t in births), reverse=True)[:64]

    def number_of_cuts(births: frozenset[int]) -> int:
        start = candidates[births]
        return sum(i >= start for i in _cut_positions(order, last_read, births, start, capture))

    counts = {births: number_of_cuts(births) for births in longest}
    if not counts:
        return 0, frozenset()
    enough = 0.6 * max(counts.values())  # one value more may always win a few cuts, within the first block
    best = min((births for births in longest if counts[births] >= enough), key=lambda b: (len(b), candidates[b]))
    return candidates[best], best
