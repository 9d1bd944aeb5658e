"""Plan, Times -> Timeline: who does what when, simulated without devices.

Each rank computes one action at a time, in a fixed order; a transfer takes ``latency + bytes / bandwidth`` and occupies
nobody. So the start of every action follows from what it needs and from what its rank did before: no queue, no chance.

    rank 0   C^1 g^1 ─z_1→                                                      ∇ g^1 C^1
    rank 1   C^2 g^2 ····· F^1 ─z_2→                              F^1 ─∇z_1→ g^2 C^2
    rank 2   C^3 g^3 ················ F^2  head │ head  F^2 ─∇z_2→ g^3 C^3
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from graphlib import TopologicalSorter

from pararealize.analysis.space import Space
from pararealize.argument_types import typed_arguments
from pararealize.errors import PlanError

from .actions import Action, ActionKey, Direction, Operation, Span, in_order, waits_for
from .peers import Peers, peers_of
from .plan import Plan
from .spec import Window
from .timeline import Timeline
from .times import RATE, Seconds, Times, plan_times
from .transfer import Transfer, transfer_fault

__all__ = ["simulate"]

FORWARD: Direction = "forward"
BACKWARD: Direction = "backward"


@typed_arguments(PlanError)
def simulate(
    plan: Plan,
    costs: Times | None = None,
    *,
    latency: float = 0.0,
    bandwidth: float = math.inf,
    batch: int | None = None,
    ranks: int | None = None,
    assignment: Sequence[int] | None = None,
    overlap: bool = True,
    reduce_linear: bool = False,
    training: bool = True,
    rate: float = RATE,
) -> Timeline:
    r"""Simulate one step of a parareal network.

    With fine times :math:`s_j` (adapter and, for j = 1, stem included), coarse times :math:`c_j`, one device for
    each segment of a window and messages that cost nothing, the interface values of a window are there at

    .. math:: t_1 = s_1, \quad t_{j+1} = \max(s_{j+1}, t_j) + c_j,

    and the backward pass is the mirror image: a device differentiates F^{j-1} first, sends the gradient, then g^j.

    Args:
        plan: the plan.
        costs: seconds of its parts, as :func:`~pararealize.measure_network` gives them; otherwise those of
            :func:`~pararealize.plan.times.plan_times`.
        latency: seconds of a message.
        bandwidth: bytes a second of a message.
        batch: samples a step, for messages and counted plans; the plan's when left out.
        ranks: devices; fewer than segments get consecutive runs of them.
        assignment: how many segments each device has, in order, in place of ``ranks``.
        overlap: ``False`` for the paper's way, in which the coarse chain begins when all segments are done, and
            backward, segments begin when it is.
        reduce_linear: take neighbouring coarse blocks that are the identity as one sum over their devices forward, and
            one broadcast backward, each of logarithmic depth; see :func:`~pararealize.network.parareal.reduction`.
        training: ``False`` for the forward pass alone.
        rate: operations a second, for counted plans without ``costs``.

    Raises:
        PlanError: a number is out of range, or costs and plan do not fit.

    Example:
        >>> import torch
        >>> from pararealize import capture, find_blocks, make_plan
        >>> from pararealize.models import resnet20
        >>> plan = make_plan(find_blocks(capture(resnet20(), torch.randn(2, 3, 32, 32))), 3, coarse="linear")
        >>> timeline = simulate(plan)
        >>> round(timeline.speedup, 2), [action.name for action in timeline.of(2)][:4]
        (2.46, ['C3', 'g3', 'F2', 'head'])
    """
    batch = plan.batch if batch is None else batch
    runs = _runs(plan.n, plan.n if ranks is None else ranks, assignment)
    _check(plan, costs, latency, bandwidth, batch)
    times = plan_times(plan, batch=batch, rate=rate) if costs is None else costs
    transfer = Transfer(latency, bandwidth)
    schedule = _Schedule(plan, times, runs, batch, reduce_linear=reduce_linear)
    schedule.forward()
    if training:
        schedule.backward()
    counted = costs is None and plan.unit == "flops"
    seconds = f"counted work at {rate:g} operations a second" if counted else "measured seconds"
    notes = [f"batch {batch}, {transfer}", seconds]
    if not overlap:
        schedule.wait_for_all()
        notes.append("no overlap: the coarse chain waits for all segments, and they for it")
    if reduce_linear:
        notes.append("linear coarse blocks within a stage are reduced and broadcast")
    actions = schedule.timed(transfer)
    return Timeline(
        model=plan.model, n=plan.n, ranks=len(runs), origin="simulated", actions=actions, notes=tuple(notes)
    )


def _runs(n: int, ranks: int, assignment: Sequence[int] | None) -> list[tuple[int, int]]:
    """First and last segment of each rank."""
    if not 1 <= ranks <= n:
        raise PlanError(f"ranks is {ranks}; pass 1 to {n}, the number of segments")
    if assignment is not None and (sum(assignment) != n or min(assignment) < 1):
        raise PlanError(f"assignment is {list(assignment)!r}; pass how many of the {n} segments each device has")
    owners = [(j - 1) * ranks // n for j in range(1, n + 1)]
    counts = [owners.count(rank) for rank in range(ranks)] if assignment is None else assignment
    ends = itertools.accumulate(counts)
    return [(end - count + 1, end) for end, count in zip(ends, counts, strict=True)]


def _check(plan: Plan, costs: Times | None, latency: float, bandwidth: float, batch: int) -> None:
    faults = [fault] if (fault := transfer_fault(latency, bandwidth)) else []
    if batch < 1:
        faults.append(f"batch is {batch}; pass 1 or more")
    rows = plan.segments, plan.adapters
    if costs is not None and (len(costs.segments), len(costs.adapters)) != tuple(map(len, rows)):
        faults.append(
            f"costs are of {len(costs.segments)} segments and the plan has {len(plan.segments)}; measure that network"
        )
    if faults:
        raise PlanError("; ".join(faults))


@dataclasses.dataclass(slots=True, kw_only=True)
class _Task:
    """An action whose time is not known yet.

    Attributes:
        j: the segment that it belongs to; of a transfer, the one that sends.
        rank: the rank that computes or sends.
        to: of a transfer, the rank that receives.
        seconds: how long it takes to compute.
        size: bytes of a transfer.
        after: what it needs.
    """

    j: int
    rank: int
    to: int | None = None
    seconds: float = 0.0
    size: int = 0
    after: list[ActionKey]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _WindowRanks:
    """Who has which segments of one window, and what they pass on to whom.

    Attributes:
        m: the window as it stands in keys: 0 where there is one alone.
        window: its rows.
        ranks: the rank of each segment, from the first one.
        runs: first and last segment of each rank that has some, in order.
        peers: of these ranks, counted among them.
        segments: seconds of g^j.
        adapters: of C^j, j > 1.
        coarse: of F^j.
    """

    m: int
    window: Window
    ranks: tuple[int, ...]
    runs: tuple[tuple[int, int], ...]
    peers: tuple[Peers, ...]
    segments: tuple[Seconds, ...]
    adapters: tuple[Seconds, ...]
    coarse: tuple[Seconds, ...]

    @property
    def n(self) -> int:
        """How many segments."""
        return self.window.n


class _Schedule:
    """The tasks of one step, and the order in which each rank computes its own.

    That order is the one in which :meth:`forward` and :meth:`backward` add tasks. Forward, a rank computes all its
    segments of a window before its coarse blocks, which wait for other ranks; backward, its coarse blocks before all
    its segments, because other ranks wait for them.
    """

    def __init__(
        self, plan: Plan, times: Times, runs: Sequence[tuple[int, int]], batch: int, *, reduce_linear: bool
    ) -> None:
        self.plan, self.times, self.batch = plan, times, batch
        homes = [rank for rank, (first, last) in enumerate(runs) for _ in range(first, last + 1)]
        of_segments, of_adapters, of_coarse = map(iter, (times.segments, times.adapters, times.coarse))
        self.windows = []
        for window in plan.windows:
            ranks = tuple(homes[window.offset : window.offset + window.n])
            groups = [[j for j, _ in pairs] for _, pairs in itertools.groupby(enumerate(ranks, 1), key=lambda p: p[1])]
            window_runs = tuple((group[0], group[-1]) for group in groups)
            rows = window.coarse_blocks if reduce_linear else ()
            same = {row.j for row in rows if row.kind == "linear" and row.x == row.y}
            self.windows.append(
                _WindowRanks(
                    m=window.segments[0].m,
                    window=window,
                    ranks=ranks,
                    runs=window_runs,
                    peers=peers_of(window_runs, same),
                    segments=tuple(itertools.islice(of_segments, window.n)),
                    adapters=tuple(itertools.islice(of_adapters, window.n - 1)),
                    coarse=tuple(itertools.islice(of_coarse, window.n - 1)),
                )
            )
        self.lengths = [ranks.n for ranks in self.windows]
        self.last_rank = len(runs) - 1
        self.tasks: dict[ActionKey, _Task] = {}
        self.programs: list[list[ActionKey]] = [[] for _ in runs]

    # What there is to do --------------------------------------------------------------------------------------------

    def forward(self) -> None:
        """The forward pass: of a window all that waits for no other segment, then the coarse chain; last the head."""
        self._compute(ActionKey("stem", FORWARD), 1, 0, self.times.stem)
        before: _WindowRanks | None = None
        for w in self.windows:
            for j in range(1, w.n + 1):
                if before is not None or (j > 1 and self.plan.source == "stem"):
                    self._send_x(w, j, FORWARD, sender=before)
                if j > 1:
                    self._compute(_key(w, "adapter", FORWARD, j), j, w.ranks[j - 1], w.adapters[j - 2])
                self._compute(_key(w, "fine", FORWARD, j), j, w.ranks[j - 1], w.segments[j - 1])
            for place, (first, last) in enumerate(w.runs):
                begin = self._sum(w, place) if w.peers[place].terms else max(first, 2)
                for j in range(begin, last + 1):
                    self._send_z(w, j - 1, j, FORWARD)
                    self._compute(_key(w, "coarse", FORWARD, j - 1), j, w.ranks[j - 1], w.coarse[j - 2])
            before = w
        self._compute(ActionKey("head", FORWARD), self.lengths[-1], self.last_rank, self.times.head)

    def backward(self) -> None:
        """The backward pass: on every rank the coarse blocks of a window first, so that gradients leave early."""
        self._compute(ActionKey("head", BACKWARD), self.lengths[-1], self.last_rank, self.times.head)
        for i, w in reversed(list(enumerate(self.windows))):
            of_sums = {
                w.runs[place][1] for place, peers in enumerate(w.peers) if peers.z_to != place + 1
            }  # interfaces behind ranks of a sum, and before one: their gradients are sent by _spread
            for place, peers in reversed(list(enumerate(w.peers))):
                if peers.terms:
                    self._spread(w, place, peers)
            for j in range(w.n - 1, 0, -1):
                self._compute(_key(w, "coarse", BACKWARD, j), j + 1, w.ranks[j], w.coarse[j - 1])
                if j not in of_sums:
                    self._send_z(w, j + 1, j, BACKWARD)
            before = self.windows[i - 1] if i else None
            for j in range(w.n, 0, -1):
                self._compute(_key(w, "fine", BACKWARD, j), j, w.ranks[j - 1], w.segments[j - 1])
                if j > 1:
                    self._compute(_key(w, "adapter", BACKWARD, j), j, w.ranks[j - 1], w.adapters[j - 2])
                if before is not None or (j > 1 and self.plan.source == "stem"):
                    self._send_x(w, j, BACKWARD, sender=before)
        self._compute(ActionKey("stem", BACKWARD), 1, 0, self.times.stem)

    def wait_for_all(self) -> None:
        """The paper's order: forward, coarse blocks after all segments; backward, segments after all coarse blocks."""
        first = {("coarse", FORWARD): ("fine", FORWARD), ("fine", BACKWARD): ("coarse", BACKWARD)}
        for key, task in self.tasks.items():
            if before := first.get((key.kind, key.direction)):
                task.after += [o for o in self.tasks if (o.kind, o.direction) == before and o.m == key.m]

    def _sum(self, w: _WindowRanks, place: int) -> int:
        """A rank's part of a sum over ranks: differences ``y - x``, the sums that others send, and where to with it.

        Gives the first of its segments whose coarse block is not part of the sum.
        """
        (first, last), peers, rank = w.runs[place], w.peers[place], w.ranks[w.runs[place][0] - 1]
        total: list[ActionKey] = []  # what has been added up so far: one key, or none
        for j in peers.terms:
            key = _key(w, "difference", FORWARD, j)
            seconds = w.coarse[j - 2] if total else _half(w, j - 1)
            self._compute(key, j, rank, seconds, [_key(w, "fine", FORWARD, j), *total])
            total = [key]
        half = _half(w, peers.terms[-1] - 1)
        for index, sender in enumerate(peers.sums_from, 1):
            key = _key(w, "sum", FORWARD, last, index)
            self._compute(key, last, rank, half, [*total, _key(w, "send sum", FORWARD, w.runs[sender][1])])
            total = [key]
        if peers.sum_to is not None:
            self._transfer(_key(w, "send sum", FORWARD, last), w, last, w.runs[peers.sum_to][0], total)
        if peers.z_from is None:
            return last + 1
        before, begin = w.runs[peers.z_from][1], peers.terms.stop
        z = _key(w, "send z", FORWARD, before)  # of before the sum: it goes straight to the end, and is added there
        self._transfer(z, w, before, first)
        self._compute(_key(w, "coarse", FORWARD, begin - 2), begin - 1, rank, half, [z, *total])
        return begin

    def _spread(self, w: _WindowRanks, place: int, peers: Peers) -> None:
        """One gradient for all ranks of a sum: straight to the one before it, the way of the sums to the others."""
        first, last = w.runs[place]
        arrival = [_key(w, "send z", BACKWARD, last)]
        if peers.z_from is not None:  # the sum ends here
            end = _key(w, "coarse", BACKWARD, peers.terms[-1] - 1)
            arrival = waits_for(end, self.lengths, self.plan.source)
            before = w.runs[peers.z_from][1]
            self._transfer(_key(w, "send z", BACKWARD, before), w, first, before, arrival)
        for sender in reversed(peers.sums_from):
            last = w.runs[sender][1]
            self._transfer(_key(w, "send z", BACKWARD, last), w, first, last, arrival)

    def _compute(
        self, key: ActionKey, j: int, rank: int, seconds: Seconds, after: Iterable[ActionKey] | None = None
    ) -> None:
        """Add a task to a rank's programme; what it needs is the equation's where ``after`` is none."""
        needs = waits_for(key, self.lengths, self.plan.source) if after is None else after
        self.tasks[key] = _Task(j=j, rank=rank, seconds=seconds[key.direction == BACKWARD], after=list(needs))
        self.programs[rank].append(key)

    def _send_x(self, w: _WindowRanks, j: int, direction: Direction, *, sender: _WindowRanks | None) -> None:
        """What window w begins with, from the stem or the end of the window before; or its gradient, the other way."""
        ends = [(1, 0) if sender is None else (sender.n, sender.ranks[-1]), (j, w.ranks[j - 1])]
        (here, rank), (_, to) = ends if direction == FORWARD else ends[::-1]
        self._add_transfer(_key(w, "send x", direction, j), here, rank, to, w.window.segments[0].x, None)

    def _send_z(self, w: _WindowRanks, j: int, to: int, direction: Direction) -> None:
        """z_j to the next segment, or its gradient back."""
        self._transfer(_key(w, "send z", direction, min(j, to)), w, j, to)

    def _transfer(
        self, key: ActionKey, w: _WindowRanks, j: int, to: int, after: Iterable[ActionKey] | None = None
    ) -> None:
        """A transfer between the ranks of two segments of a window."""
        space = w.window.segments[min(j, to) - 1].y
        self._add_transfer(key, j, w.ranks[j - 1], w.ranks[to - 1], space, after)

    def _add_transfer(
        self, key: ActionKey, j: int, rank: int, to: int, space: Space, after: Iterable[ActionKey] | None
    ) -> None:
        """A transfer; :meth:`timed` passes over it where it stays on one rank."""
        needs = waits_for(key, self.lengths, self.plan.source) if after is None else after
        size = space.numel * space.torch_dtype.itemsize * self.batch
        self.tasks[key] = _Task(j=j, rank=rank, to=to, size=size, after=list(needs))

    # When it is done ------------------------------------------------------------------------------------------------

    def timed(self, transfer: Transfer) -> tuple[Action, ...]:
        """Every task as early as what it needs and its rank's order allow.

        There is no queue of events, and no tie to break between them: a rank computes in its programme's order, and any
        number of transfers pass at once. Each start is the latest end among what a task needs and the task before it
        on its rank, so one pass in topological order finds them all. Ties matter only for the order of the list:
        actions of equal start and end stand in the order of that pass, which depends on the order in which tasks were
        added and on nothing else, so that equal plans give equal timelines.
        """
        needs = {key: self._needs(task) for key, task in self.tasks.items() if task.to != task.rank}
        before = {key: [other] for program in self.programs for other, key in itertools.pairwise(program)}
        edges = {key: [*needs[key], *before.get(key, [])] for key in needs}
        spans: dict[ActionKey, Span] = {}
        for key in TopologicalSorter(edges).static_order():
            task = self.tasks[key]
            start = max((spans[other].end for other in edges[key]), default=0.0)
            seconds = transfer.seconds(task.size) if key.kind == "transfer" else task.seconds
            spans[key] = Span(task.rank, task.j, start, start + seconds, task.to, key.m)
        return in_order(spans, needs)

    def _needs(self, task: _Task) -> list[ActionKey]:
        """What a task waits for; through transfers within one rank, which are none."""
        needs: dict[ActionKey, None] = {}
        for key in task.after:
            other = self.tasks[key]
            needs.update(dict.fromkeys(self._needs(other) if other.to == other.rank else [key]))
        return list(needs)


def _key(w: _WindowRanks, operation: Operation, direction: Direction, j: int, index: int = 0) -> ActionKey:
    return ActionKey(operation, direction, j, index, m=w.m)


def _half(w: _WindowRanks, j: int) -> Seconds:
    """One of the two operations, subtraction and addition, that an identity F^j is."""
    forward, backward = w.coarse[j - 1]
    return forward / 2, backward / 2
