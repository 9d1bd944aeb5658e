"""Hierarchy, LayerTimes, number of ranks -> Timeline: a step of layer-parallel multigrid, simulated without devices.

The loop of ``multigrid.py`` runs on values that know where and when they are there, as it runs on tensors in a real
step: a rank computes one thing at a time in the order of the program, waits for what others send, and remembers f(U)
at C-points as ``sweeps.py`` does. Additions and norms cost nothing.

    rank 0   F0 F1 ─u→ f1 f2 f3 f5 f6 f7 │ g0 g4 ─u→ g1 g2 g3 g5 g6 g7
    rank 1   ········· F8 F12 f9 f10 f11 f13 f14 f15 │ ··· g8 g12 g9 g10 g11 … head
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

from pararealize.errors import PlanError
from pararealize.multigrid.solver.hierarchy import Hierarchy
from pararealize.multigrid.solver.settings import Cycle, Relaxation, check_iterations
from pararealize.multigrid.solver.solver import solve_and_sweep
from pararealize.plan.actions import ActionKey, Direction, Operation, Span, in_order
from pararealize.plan.timeline import Timeline
from pararealize.plan.transfer import Transfer

from .times import LayerTimes

__all__ = ["simulate_multigrid"]


def simulate_multigrid(
    hierarchy: Hierarchy,
    times: LayerTimes,
    ranks: int,
    *,
    forward_iterations: int = 2,
    backward_iterations: int = 1,
    relaxation: Relaxation = "F",
    cycle: Cycle = "V",
    transfer: Transfer | None = None,
    size: float = 0.0,
    training: bool = True,
    model: str = "LayerParallel",
) -> Timeline:
    r"""Simulate one step of a layer-parallel network.

    With two levels, one iteration each way, P ranks of equally many equal layers, messages that cost nothing, and the
    serial network's forward time F, backward time B and input-only backward time B_x,

    .. math:: T = F \left[ \frac1c + \frac{1 - 1/c}{P} \right] + \frac{B_x}{c} + \frac BP :

    a serial march through the coarse steps each way, whose f serve the sweep too, and sweeps at once.

    Args:
        hierarchy: the levels, as ``net.hierarchy``.
        times: seconds of every layer, as :func:`~pararealize.multigrid.times.measure_layers` gives them.
        ranks: how many; each has consecutive intervals.
        forward_iterations: k of the forward solve.
        backward_iterations: k of the adjoint.
        relaxation: ``"F"`` or ``"FCF"``.
        cycle: ``"V"`` or ``"F"``.
        transfer: of messages; free when left out.
        size: bytes of a value between layers.
        training: ``False`` for the forward pass alone.
        model: what to call the network.

    Returns:
        A timeline. ``g3`` is the evaluation of layer 3 that counts, ``f3.1`` an earlier one in relaxation, ``F3.1`` one
        in a coarse step; ``u`` and ``v`` with a layer's number are messages. Its ``serial`` is the serial network's.

    Raises:
        PlanError: times are of another number of layers, or there is no rank.
        MultigridError: an argument is none of the sort.

    Example:
        >>> from pararealize.multigrid.solver.hierarchy import make_hierarchy
        >>> from pararealize.multigrid.simulation import simulate_multigrid
        >>> from pararealize.multigrid.times import LayerTimes
        >>> hierarchy = make_hierarchy([False] * 64, coarsening=8)
        >>> times = LayerTimes.equal(64, forward=1.0, backward=2.0, input_only=1.0)
        >>> one_each = [simulate_multigrid(hierarchy, times, p, forward_iterations=1).speedup for p in (1, 2, 8)]
        >>> [round(value, 2) for value in one_each]
        [0.96, 1.78, 4.92]
    """
    check_iterations(forward_iterations, relaxation, cycle)
    check_iterations(backward_iterations)
    if len(times.layers) != hierarchy.layers or isinstance(ranks, bool) or ranks < 1:
        raise PlanError(
            f"times of {len(times.layers)} layers, a hierarchy of {hierarchy.layers}, {ranks} ranks; "
            "measure this network, and pass at least one rank"
        )
    clock = _Clock(hierarchy, ranks, transfer or Transfer(0.0, float("inf")), size)
    settings: dict[str, Any] = {"relaxation": relaxation, "cycle": cycle, "norm": lambda _: float("inf")}
    stem = clock.act(ActionKey("stem", "forward"), 0, times.stem[0], [])
    forward = _Maps(clock, hierarchy, times, "forward")
    u = _passed(forward, _Value(clock, 0, stem), forward_iterations, settings)
    last = ranks - 1
    head = clock.act(ActionKey("head", "forward"), last, times.head[0], [u.on(last)])
    if training:
        back = clock.act(ActionKey("head", "backward"), last, times.head[1], [head])
        adjoint = _Maps(clock, hierarchy, times, "backward")
        u = _passed(adjoint, _Value(clock, last, back), backward_iterations, settings)
        clock.act(ActionKey("stem", "backward"), 0, times.stem[1], [u.on(0)])
    iterations = f"{forward_iterations}/{backward_iterations} iterations, {relaxation}-relaxation"
    notes = (f"layer-parallel multigrid, {iterations}: {'; '.join(str(hierarchy).splitlines())}", str(clock.transfer))
    return clock.timeline(model, notes)


def _passed(maps: _Maps, u: _Value, iterations: int, settings: dict[str, Any]) -> _Value:
    end: _Value
    end, _ = solve_and_sweep(
        u, maps.hierarchy, maps.step, maps.sweep, iterations=iterations, announce=maps.announce, **settings
    )
    return end


@dataclasses.dataclass(slots=True)
class _Done:
    """An action, whose key is not fixed before its evaluation is known to be the one that counts."""

    key: ActionKey
    j: int
    rank: int
    to: int | None
    start: float
    end: float
    after: tuple[_Done, ...]


class _Clock:
    """What every rank has done, and until when it is busy."""

    def __init__(self, hierarchy: Hierarchy, ranks: int, transfer: Transfer, size: float) -> None:
        self.hierarchy, self.ranks, self.transfer, self.size = hierarchy, ranks, transfer, size
        self.owners, self.intervals = [0] * hierarchy.layers, [1] * hierarchy.layers
        for rank, share in enumerate(hierarchy.share(ranks)):
            for j in share:
                for n in range(*hierarchy.levels[0].intervals[j]):
                    self.owners[n], self.intervals[n] = rank, j + 1
        self._free = [0.0] * ranks
        self._done: list[_Done] = []
        self._counts: collections.Counter[ActionKey] = collections.Counter()

    def act(self, key: ActionKey, rank: int, seconds: float, after: Sequence[_Done], j: int = 0) -> _Done:
        """A rank does something, as soon as it may."""
        start = max([self._free[rank], *(other.end for other in after)])
        own = j or (1 if rank == 0 else len(self.hierarchy.levels[0].intervals))
        done = _Done(key, own, rank, None, start, start + seconds, tuple(after))
        self._free[rank] = done.end
        self._done.append(done)
        return done

    def send(self, source: _Done, to: int) -> _Done:
        """A message, which occupies nobody; the rank that asks for it waits."""
        end = source.end + self.transfer.seconds(self.size)
        direction = source.key.direction
        key = self.numbered("send u" if direction == "forward" else "send v", direction, source.j)
        sent = _Done(key, source.j, source.rank, to, source.end, end, (source,))
        self._free[to] = max(self._free[to], end)
        self._done.append(sent)
        return sent

    def numbered(self, operation: Operation, direction: Direction, n: int) -> ActionKey:
        """A key that no other action has, for the next operation of this sort on layer or interval n."""
        key = ActionKey(operation, direction, n)
        self._counts[key] += 1
        return dataclasses.replace(key, index=self._counts[key])

    def timeline(self, model: str, notes: tuple[str, ...]) -> Timeline:
        """All of it."""
        spans = {done.key: Span(done.rank, done.j, done.start, done.end, done.to) for done in self._done}
        actions = in_order(spans, {done.key: [other.key for other in done.after] for done in self._done})
        n = len(self.hierarchy.levels[0].intervals)
        return Timeline(model=model, n=n, ranks=self.ranks, origin="simulated", actions=actions, notes=notes)


class _Value:
    """A value: the action that gave it, and on other ranks the message that brought it."""

    def __init__(self, clock: _Clock, owner: int, made: _Done) -> None:
        self.clock, self.owner = clock, owner
        self._there = {owner: made}

    def on(self, rank: int) -> _Done:
        """What the value waits for on a rank, after it has been sent there."""
        if rank not in self._there:
            self._there[rank] = self.clock.send(self._there[self.owner], rank)
        return self._there[rank]

    def __sub__(self, other: _Value) -> _Value:
        return self._with(other)

    def __add__(self, other: _Value) -> _Value:
        return self._with(other)

    def _with(self, other: _Value) -> _Value:
        """An addition where this value stands, which costs nothing: it is there when both are."""
        both = (self.on(self.owner), other.on(self.owner))
        return _Value(self.clock, self.owner, max(both, key=lambda done: done.end))


class _Maps:
    """Steps and sweeps that take their time, and remember what was computed at the same value."""

    def __init__(self, clock: _Clock, hierarchy: Hierarchy, times: LayerTimes, direction: Direction) -> None:
        self.clock, self.times, self.direction = clock, times, direction
        self.hierarchy = hierarchy if direction == "forward" else hierarchy.reversed()
        self._kept = {hierarchy.levels[0].steps[first].layer for first, _ in hierarchy.levels[0].intervals}
        self._known: dict[Any, tuple[_Value, _Done]] = {}

    def step(self, level: int, s: int, u: _Value) -> _Value:
        """Step s of a level."""
        step = self.hierarchy.levels[level].steps[s]
        forwards = self.direction == "forward"
        key = step.layer if forwards else (step.layer, step.width)
        known = self._known.get(key)
        if known is not None and known[0] is u:
            return _Value(self.clock, known[1].rank, known[1])
        action = self.clock.numbered("coarse" if level else "relax", self.direction, step.layer)
        done = self._act(action, self.times.layers[step.layer][0 if forwards else 2], u)
        if not forwards or step.layer in self._kept:
            self._known[key] = u, done
        return _Value(self.clock, done.rank, done)

    def announce(self, j: int, u: _Value) -> None:
        """Bring the value from which interval j will be swept."""
        level = self.hierarchy.levels[0]
        u.on(self.clock.owners[level.steps[level.intervals[j][0]].layer])

    def sweep(self, j: int, u: _Value) -> _Value:
        """The last sweep of an interval."""
        for s in range(*self.hierarchy.levels[0].intervals[j]):
            n = self.hierarchy.levels[0].steps[s].layer
            known = self._known.get(n) if self.direction == "forward" else None
            if known is not None and known[0] is u:
                done = known[1]  # it was computed before, and is the evaluation that counts
                done.key = ActionKey("fine", self.direction, n)
            else:
                seconds = self.times.layers[n][self.direction == "backward"]
                done = self._act(ActionKey("fine", self.direction, n), seconds, u)
            u = _Value(self.clock, done.rank, done)
        return u

    def _act(self, key: ActionKey, seconds: float, u: _Value) -> _Done:
        rank = self.clock.owners[key.j]
        return self.clock.act(key, rank, seconds, [u.on(rank)], self.clock.intervals[key.j])
