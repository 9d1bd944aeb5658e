"""Hierarchy, LayerTimes, number of ranks -> Timeline: a step of layer-parallel multigrid, simulated without devices.

The solver runs on values that know on which rank and when they are ready, as it runs on tensors in a real step: a rank
computes one thing at a time in the order of the program, waits for what others send, and remembers f(U) at C-points as
``multigrid/solver/propagators.py`` does. Additions and norms cost nothing.

    rank 0   F0 F1 ─u→ f1 f2 f3 f5 f6 f7 │ g0 g4 ─u→ g1 g2 g3 g5 g6 g7
    rank 1   ········· F8 F12 f9 f10 f11 f13 f14 f15 │ ··· g8 g12 g9 g10 g11 … head
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

from pararealize.errors import PlanError
from pararealize.multigrid.solver.hierarchy import Hierarchy
from pararealize.multigrid.solver.settings import Cycle, Relaxation, Settings
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
        ranks: their number; each has consecutive intervals.
        forward_iterations: k of the forward solve.
        backward_iterations: k of the adjoint.
        relaxation: ``"F"`` or ``"FCF"``.
        cycle: ``"V"`` or ``"F"``.
        transfer: latency and bandwidth of messages; they cost nothing when left out.
        size: bytes of a value between layers.
        training: ``False`` for the forward pass alone.
        model: the network's name in the timeline.

    Returns:
        A timeline. ``g3`` is the evaluation of layer 3 that counts, ``f3.1`` an earlier one in relaxation, ``F3.1`` one
        in a coarse step; ``u`` and ``v`` with a layer's number are messages. Its ``serial`` is the serial network's.

    Raises:
        PlanError: times are of another number of layers, or there is no rank.
        MultigridError: an argument is none of the sort.

    Example:
        >>> from pararealize.multigrid.solver import make_hierarchy
        >>> from pararealize.multigrid import LayerTimes, simulate_multigrid
        >>> hierarchy = make_hierarchy([False] * 64, coarsening=8)
        >>> times = LayerTimes.equal(64, forward=1.0, backward=2.0, input_only=1.0)
        >>> one_each = [simulate_multigrid(hierarchy, times, p, forward_iterations=1).speedup for p in (1, 2, 8)]
        >>> [round(value, 2) for value in one_each]
        [0.96, 1.78, 4.92]
    """
    settings = Settings(
        forward_iterations=forward_iterations,
        backward_iterations=backward_iterations,
        relaxation=relaxation,
        cycle=cycle,
    )
    settings.check()
    if len(times.layers) != hierarchy.layers or isinstance(ranks, bool) or ranks < 1:
        raise PlanError(
            f"times of {len(times.layers)} layers, a hierarchy of {hierarchy.layers}, {ranks} ranks; "
            "measure this network, and pass at least one rank"
        )
    clock = _RankClocks(hierarchy, ranks, transfer or Transfer(0.0, float("inf")), size)
    stem = clock.act(ActionKey("stem", "forward"), 0, times.stem[0], [])
    u = _pass(_TimedMaps(clock, hierarchy, times, "forward"), _TimedValue(clock, 0, stem), settings)
    last = ranks - 1
    head = clock.act(ActionKey("head", "forward"), last, times.head[0], [u.on(last)])
    if training:
        back = clock.act(ActionKey("head", "backward"), last, times.head[1], [head])
        u = _pass(_TimedMaps(clock, hierarchy, times, "backward"), _TimedValue(clock, last, back), settings)
        clock.act(ActionKey("stem", "backward"), 0, times.stem[1], [u.on(0)])
    iterations = f"{forward_iterations}/{backward_iterations} iterations, {relaxation}-relaxation"
    notes = (f"layer-parallel multigrid, {iterations}: {'; '.join(str(hierarchy).splitlines())}", str(clock.transfer))
    return clock.timeline(model, notes)


def _pass(maps: _TimedMaps, u: _TimedValue, settings: Settings) -> _TimedValue:
    """The value at the end of a solve and the last sweep, in the direction of the maps."""
    end: _TimedValue
    end, _ = solve_and_sweep(
        u,
        maps.hierarchy,
        maps.step,
        maps.sweep,
        announce=maps.announce,
        norm=lambda _: float("inf"),  # no value is known, so that no solve ends early
        **settings.of_solve(maps.direction),
    )
    return end


@dataclasses.dataclass(slots=True)
class _TimedAction:
    """An action with its times; its key may change until its evaluation is known to be the one that counts."""

    key: ActionKey
    j: int
    rank: int
    to: int | None
    start: float
    end: float
    after: tuple[_TimedAction, ...]


class _RankClocks:
    """All actions of all ranks so far, and until when each rank is busy."""

    def __init__(self, hierarchy: Hierarchy, ranks: int, transfer: Transfer, size: float) -> None:
        self.hierarchy, self.ranks, self.transfer, self.size = hierarchy, ranks, transfer, size
        self.owners = hierarchy.owners(ranks)
        intervals = enumerate(hierarchy.levels[0].intervals, start=1)
        self.intervals = [j for j, (first, end) in intervals for _ in range(first, end)]  # of each layer
        self._busy_until = [0.0] * ranks
        self._actions: list[_TimedAction] = []
        self._counts: collections.Counter[ActionKey] = collections.Counter()

    def act(
        self, key: ActionKey, rank: int, seconds: float, after: Sequence[_TimedAction], j: int | None = None
    ) -> _TimedAction:
        """A rank does something, as soon as it is free and what it waits for has ended; j is the interval."""
        start = max([self._busy_until[rank], *(other.end for other in after)])
        if j is None:  # stem and head count to the first and the last interval
            j = 1 if rank == 0 else len(self.hierarchy.levels[0].intervals)
        action = _TimedAction(key, j, rank, None, start, start + seconds, tuple(after))
        self._busy_until[rank] = action.end
        self._actions.append(action)
        return action

    def send(self, source: _TimedAction, to: int) -> _TimedAction:
        """A message, which occupies nobody; the rank that asks for it waits."""
        end = source.end + self.transfer.seconds(self.size)
        direction = source.key.direction
        key = self.next_key("send u" if direction == "forward" else "send v", direction, source.j)
        message = _TimedAction(key, source.j, source.rank, to, source.end, end, (source,))
        self._busy_until[to] = max(self._busy_until[to], end)
        self._actions.append(message)
        return message

    def next_key(self, operation: Operation, direction: Direction, n: int) -> ActionKey:
        """A key that no other action has, for the next operation of this sort on layer or interval n."""
        key = ActionKey(operation, direction, n)
        self._counts[key] += 1
        return dataclasses.replace(key, index=self._counts[key])

    def timeline(self, model: str, notes: tuple[str, ...]) -> Timeline:
        """All actions, in the order of their times."""
        spans = {a.key: Span(a.rank, a.j, a.start, a.end, a.to) for a in self._actions}
        actions = in_order(spans, {a.key: [other.key for other in a.after] for a in self._actions})
        n = len(self.hierarchy.levels[0].intervals)
        return Timeline(model=model, n=n, ranks=self.ranks, origin="simulated", actions=actions, notes=notes)


class _TimedValue:
    """A value: the action that computed it on its owner, and the messages that brought it to other ranks."""

    def __init__(self, clock: _RankClocks, owner: int, source: _TimedAction) -> None:
        self.clock, self.owner = clock, owner
        self._arrivals = {owner: source}

    def on(self, rank: int) -> _TimedAction:
        """What the value waits for on a rank, after it has been sent there."""
        if rank not in self._arrivals:
            self._arrivals[rank] = self.clock.send(self._arrivals[self.owner], rank)
        return self._arrivals[rank]

    def __sub__(self, other: _TimedValue) -> _TimedValue:
        return self + other

    def __add__(self, other: _TimedValue) -> _TimedValue:
        """A sum or difference on this value's owner, which costs nothing: it is ready when both are."""
        both = (self.on(self.owner), other.on(self.owner))
        return _TimedValue(self.clock, self.owner, max(both, key=lambda action: action.end))


class _TimedMaps:
    """Steps and sweeps that take their time, and remember what was computed at the same value as ``propagators`` do."""

    def __init__(self, clock: _RankClocks, hierarchy: Hierarchy, times: LayerTimes, direction: Direction) -> None:
        self.clock, self.times, self.direction = clock, times, direction
        self.hierarchy = hierarchy if direction == "forward" else hierarchy.reversed()
        self._first_layers = {first for first, _ in hierarchy.levels[0].intervals}
        # By layer (Forward) or by layer and width (Adjoint): the latest value, and the action that evaluated f there.
        self._latest: dict[tuple[int, int], tuple[_TimedValue, _TimedAction]] = {}

    def step(self, level: int, s: int, u: _TimedValue) -> _TimedValue:
        """Step s of a level."""
        step = self.hierarchy.levels[level].steps[s]
        forwards = self.direction == "forward"
        place = step.layer, 1 if forwards else step.width
        action = self._evaluation(place, u)
        if action is None:
            key = self.clock.next_key("coarse" if level else "relax", self.direction, step.layer)
            action = self._act(key, self.times.layers[step.layer][0 if forwards else 2], u)
            if not forwards or step.layer in self._first_layers:
                self._latest[place] = u, action
        return _TimedValue(self.clock, action.rank, action)

    def announce(self, j: int, u: _TimedValue) -> None:
        """Bring the value from which interval j will be swept."""
        u.on(self.clock.owners[self.hierarchy.layers_of(j)[0]])

    def sweep(self, j: int, u: _TimedValue) -> _TimedValue:
        """The last sweep of an interval."""
        for n in self.hierarchy.layers_of(j):
            key = ActionKey("fine", self.direction, n)
            action = self._evaluation((n, 1), u) if self.direction == "forward" else None
            if action is not None:
                action.key = key  # it was computed before, and is the evaluation that counts
            else:
                action = self._act(key, self.times.layers[n][self.direction == "backward"], u)
            u = _TimedValue(self.clock, action.rank, action)
        return u

    def _evaluation(self, place: tuple[int, int], u: _TimedValue) -> _TimedAction | None:
        """The action that evaluated a layer at this very value, if there was one."""
        value, action = self._latest.get(place, (None, None))
        return action if value is u else None

    def _act(self, key: ActionKey, seconds: float, u: _TimedValue) -> _TimedAction:
        rank = self.clock.owners[key.j]
        return self.clock.act(key, rank, seconds, [u.on(rank)], self.clock.intervals[key.j])
