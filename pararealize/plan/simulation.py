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

from pararealize.argument_types import typed_arguments
from pararealize.errors import PlanError

from .actions import Action, ActionKey, Direction, Span, in_order, waits_for
from .peers import Peers, peers_of
from .plan import Plan
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
    each segment and messages that cost nothing, the interface values are there at

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
    same = {row.j for row in plan.coarse_blocks if row.kind == "linear" and row.x == row.y} if reduce_linear else ()
    transfer = Transfer(latency, bandwidth)
    schedule = _Schedule(plan, times, runs, peers_of(runs, same), batch)
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
    if costs is not None and len(costs.segments) != plan.n:
        faults.append(f"costs are of {len(costs.segments)} segments and the plan has {plan.n}; measure that network")
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


class _Schedule:
    """The tasks of one step, and the order in which each rank computes its own.

    That order is the one in which :meth:`forward` and :meth:`backward` add tasks. Forward, a rank computes all its
    segments before its coarse blocks, which wait for other ranks; backward, its coarse blocks before all its segments,
    because other ranks wait for them.
    """

    def __init__(
        self, plan: Plan, times: Times, runs: Sequence[tuple[int, int]], peers: Sequence[Peers], batch: int
    ) -> None:
        self.plan, self.times, self.batch, self.n = plan, times, batch, plan.n
        self.runs, self.peers = runs, peers
        self.ranks = [rank for rank, (first, last) in enumerate(runs) for _ in range(first, last + 1)]
        self.tasks: dict[ActionKey, _Task] = {}
        self.programs: list[list[ActionKey]] = [[] for _ in runs]

    # What there is to do --------------------------------------------------------------------------------------------

    def forward(self) -> None:
        """The forward pass: everything that waits for no other segment, then the coarse chain, then the head."""
        self._compute(ActionKey("stem", FORWARD), 1, self.times.stem)
        for j in range(1, self.n + 1):
            if j > 1:
                if self.plan.source == "stem":
                    self._send(ActionKey("send x", FORWARD, j), 1, j)
                self._compute(ActionKey("adapter", FORWARD, j), j, self.times.adapters[j - 2])
            self._compute(ActionKey("fine", FORWARD, j), j, self.times.segments[j - 1])
        for rank, (first, last) in enumerate(self.runs):
            begin = self._sum(rank) if self.peers[rank].terms else max(first, 2)
            for j in range(begin, last + 1):
                self._send(ActionKey("send z", FORWARD, j - 1), j - 1, j)
                self._compute(ActionKey("coarse", FORWARD, j - 1), j, self.times.coarse[j - 2])
        self._compute(ActionKey("head", FORWARD), self.n, self.times.head)

    def backward(self) -> None:
        """The backward pass: on every rank the coarse blocks first, so that gradients leave early."""
        self._compute(ActionKey("head", BACKWARD), self.n, self.times.head)
        of_sums = {
            self.runs[rank][1] for rank, peers in enumerate(self.peers) if peers.z_to != rank + 1
        }  # interfaces behind ranks of a sum, and before one: their gradients are sent by _spread
        for rank, peers in reversed(list(enumerate(self.peers))):
            if peers.terms:
                self._spread(rank, peers)
        for j in range(self.n - 1, 0, -1):
            self._compute(ActionKey("coarse", BACKWARD, j), j + 1, self.times.coarse[j - 1])
            if j not in of_sums:
                self._send(ActionKey("send z", BACKWARD, j), j + 1, j)
        for j in range(self.n, 0, -1):
            self._compute(ActionKey("fine", BACKWARD, j), j, self.times.segments[j - 1])
            if j > 1:
                self._compute(ActionKey("adapter", BACKWARD, j), j, self.times.adapters[j - 2])
                if self.plan.source == "stem":
                    self._send(ActionKey("send x", BACKWARD, j), j, 1)
        self._compute(ActionKey("stem", BACKWARD), 1, self.times.stem)

    def wait_for_all(self) -> None:
        """The paper's order: forward, coarse blocks after all segments; backward, segments after all coarse blocks."""
        first = {("coarse", FORWARD): ("fine", FORWARD), ("fine", BACKWARD): ("coarse", BACKWARD)}
        for key, task in self.tasks.items():
            if before := first.get((key.kind, key.direction)):
                task.after += [other for other in self.tasks if (other.kind, other.direction) == before]

    def _sum(self, rank: int) -> int:
        """A rank's part of a sum over ranks: differences ``y - x``, the sums that others send, and where to with it.

        Gives the first of its segments whose coarse block is not part of the sum.
        """
        (first, last), peers = self.runs[rank], self.peers[rank]
        total: list[ActionKey] = []  # what has been added up so far: one key, or none
        for j in peers.terms:
            key = ActionKey("difference", FORWARD, j)
            seconds = self.times.coarse[j - 2] if total else self._half(j - 1)
            self._compute(key, j, seconds, [ActionKey("fine", FORWARD, j), *total])
            total = [key]
        half = self._half(peers.terms[-1] - 1)
        for index, sender in enumerate(peers.sums_from, 1):
            key = ActionKey("sum", FORWARD, last, index)
            self._compute(key, last, half, [*total, ActionKey("send sum", FORWARD, self.runs[sender][1])])
            total = [key]
        if peers.sum_to is not None:
            self._send(ActionKey("send sum", FORWARD, last), last, self.runs[peers.sum_to][0], total)
        if peers.z_from is None:
            return last + 1
        before, begin = self.runs[peers.z_from][1], peers.terms.stop
        z = ActionKey("send z", FORWARD, before)  # of before the sum: it goes straight to the end, and is added there
        self._send(z, before, first)
        self._compute(ActionKey("coarse", FORWARD, begin - 2), begin - 1, half, [z, *total])
        return begin

    def _spread(self, rank: int, peers: Peers) -> None:
        """One gradient for all ranks of a sum: straight to the one before it, the way of the sums to the others."""
        first, last = self.runs[rank]
        arrival = [ActionKey("send z", BACKWARD, last)]
        if peers.z_from is not None:  # the sum ends here
            arrival = waits_for(ActionKey("coarse", BACKWARD, peers.terms[-1] - 1), self.n)
            before = self.runs[peers.z_from][1]
            self._send(ActionKey("send z", BACKWARD, before), first, before, arrival)
        for sender in reversed(peers.sums_from):
            last = self.runs[sender][1]
            self._send(ActionKey("send z", BACKWARD, last), first, last, arrival)

    def _half(self, j: int) -> Seconds:
        """One of the two operations, subtraction and addition, that an identity F^j is."""
        forward, backward = self.times.coarse[j - 1]
        return forward / 2, backward / 2

    def _compute(self, key: ActionKey, j: int, seconds: Seconds, after: Iterable[ActionKey] | None = None) -> None:
        """Add a task to the programme of segment j's rank; what it needs is the equation's where ``after`` is none."""
        needs = waits_for(key, self.n, self.plan.source) if after is None else after
        rank = self.ranks[j - 1]
        self.tasks[key] = _Task(j=j, rank=rank, seconds=seconds[key.direction == BACKWARD], after=list(needs))
        self.programs[rank].append(key)

    def _send(self, key: ActionKey, j: int, to: int, after: Iterable[ActionKey] | None = None) -> None:
        """A transfer between the ranks of two segments; :meth:`timed` passes over it where that is one rank."""
        needs = waits_for(key, self.n, self.plan.source) if after is None else after
        segments = self.plan.segments
        space = segments[0].x if key.operation == "send x" else segments[min(j, to) - 1].y
        size = space.numel * space.torch_dtype.itemsize * self.batch
        self.tasks[key] = _Task(j=j, rank=self.ranks[j - 1], to=self.ranks[to - 1], size=size, after=list(needs))

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
            spans[key] = Span(task.rank, task.j, start, start + seconds, task.to)
        return in_order(spans, needs)

    def _needs(self, task: _Task) -> list[ActionKey]:
        """What a task waits for; through transfers within one rank, which are none."""
        needs: dict[ActionKey, None] = {}
        for key in task.after:
            other = self.tasks[key]
            needs.update(dict.fromkeys(self._needs(other) if other.to == other.rank else [key]))
        return list(needs)
