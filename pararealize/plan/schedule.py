"""Rows of a plan, Times, segments of each rank -> Schedule: the tasks of a step in the order of each rank, timed.

Who passes what to whom is decided in ``window_ranks.py``, as for ranks of processes.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from graphlib import TopologicalSorter

from pararealize.analysis.space import Space

from .actions import Action, ActionKey, Direction, Operation, Span, in_order, waits_for
from .spec import PlannedRows, Window
from .times import Seconds, Times
from .transfer import Transfer
from .window_ranks import WindowRanks, ranks_of_windows

__all__ = ["Schedule"]

FORWARD: Direction = "forward"
BACKWARD: Direction = "backward"


@dataclasses.dataclass(slots=True, kw_only=True)
class _Task:
    """An action whose time is not known yet.

    Attributes:
        j: the segment that it belongs to; of a transfer, the one that sends.
        rank: the rank that computes or sends.
        to: of a transfer, the rank that receives.
        seconds: how long it takes to compute.
        size: bytes of a transfer.
        rounds: how many of them follow one another.
        after: what it needs.
    """

    j: int
    rank: int
    to: int | None = None
    seconds: float = 0.0
    size: int = 0
    rounds: int = 1
    after: list[ActionKey]

    def duration(self, transfer: Transfer) -> float:
        """Seconds, of a transfer those of its rounds."""
        return self.seconds if self.to is None else self.rounds * transfer.seconds(self.size)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _TimedWindow:
    """One window, with who has which segments of it and how long these take.

    Attributes:
        place: of the window, from 0.
        rows: those of the plan.
        who: ranks and their segments.
        ranks: of each segment, from segment 1.
        segments: seconds of g^j.
        adapters: of C^j, j > 1.
        coarse: of F^j.
    """

    place: int
    rows: Window
    who: WindowRanks
    ranks: tuple[int, ...]
    segments: tuple[Seconds, ...]
    adapters: tuple[Seconds, ...]
    coarse: tuple[Seconds, ...]

    @property
    def n(self) -> int:
        """How many segments."""
        return self.rows.n

    def rank_of(self, j: int) -> int:
        """The rank of a segment, at once: a step asks for each of them many times."""
        return self.ranks[j - 1]

    def key(self, operation: Operation, direction: Direction, j: int, index: int = 0) -> ActionKey:
        """An action of the window."""
        return ActionKey(operation, direction, j, index, m=self.who.m)

    def half(self, j: int) -> Seconds:
        """One of the two operations, subtraction and addition, that an identity F^j is."""
        forward, backward = self.coarse[j - 1]
        return forward / 2, backward / 2

    def reduced(self, direction: Direction, rank: int) -> list[ActionKey]:
        """What brings the result of the window's all-reduce to a rank: the ranks stand in a ring."""
        return [self.key("all-reduce", direction, self.who.last_of(rank - 1 if rank else self.who.members[-1]))]


class Schedule:
    """The tasks of one step, and the order in which each rank computes its own.

    That order is the one in which :meth:`forward` and :meth:`backward` add tasks. Forward, a rank computes all its
    segments of a window before its coarse blocks, which wait for other ranks; backward, its coarse blocks before all
    its segments, because other ranks wait for them.

    Args:
        plan: the plan.
        times: seconds of its parts.
        runs: first and last segment of each rank.
        batch: samples a step.
        reduce_linear: whether coarse blocks that are the identity are summed over ranks.
    """

    def __init__(
        self, plan: PlannedRows, times: Times, runs: Sequence[tuple[int, int]], batch: int, *, reduce_linear: bool
    ) -> None:
        self.plan, self.times, self.batch, self.reduce_linear = plan, times, batch, reduce_linear
        rows = plan.coarse_blocks if reduce_linear else ()
        same = {row.name for row in rows if row.kind == "linear" and row.x == row.y}
        of_segments, of_adapters, of_coarse = map(iter, (times.segments, times.adapters, times.coarse))
        self.windows = [
            _TimedWindow(
                place=place,
                rows=window,
                who=who,
                ranks=tuple(rank for rank, run in enumerate(who.runs) for _ in run),
                segments=tuple(itertools.islice(of_segments, window.n)),
                adapters=tuple(itertools.islice(of_adapters, window.n - 1)),
                coarse=tuple(itertools.islice(of_coarse, window.n - 1)),
            )
            for place, (window, who) in enumerate(
                zip(plan.windows, ranks_of_windows(plan.windows, runs, same), strict=True)
            )
        ]
        self.lengths = [window.n for window in self.windows]
        self.last_rank = len(runs) - 1
        self.tasks: dict[ActionKey, _Task] = {}
        self.programs: list[list[ActionKey]] = [[] for _ in runs]

    # What there is to do --------------------------------------------------------------------------------------------

    def forward(self) -> None:
        """The forward pass: of a window all that waits for no other segment, then the coarse chain; last the head."""
        self._compute(ActionKey("stem", FORWARD), 1, 0, self.times.stem)
        for w in self.windows:
            for j in range(1, w.n + 1):
                self._fine(w, j)
            if w.who.all_reduces:
                self._all_reduce(w)
                continue
            for rank in w.who.members:
                run = w.who.runs[rank]
                begin = self._sum(w, rank) if w.who.peers[rank].terms else max(run[0], 2)
                for j in range(begin, run.stop):
                    self._send_z(w, j - 1, j, FORWARD)
                    self._compute(w.key("coarse", FORWARD, j - 1), j, rank, w.coarse[j - 2])
        self._compute(ActionKey("head", FORWARD), self.lengths[-1], self.last_rank, self.times.head)

    def backward(self) -> None:
        """The backward pass: on every rank the coarse blocks of a window first, so that gradients leave early."""
        self._compute(ActionKey("head", BACKWARD), self.lengths[-1], self.last_rank, self.times.head)
        for w in reversed(self.windows):
            if w.who.all_reduces:
                self._all_reduce_gradient(w)
            else:
                self._coarse_backward(w)
            for j in range(w.n, 0, -1):
                rank = w.rank_of(j)
                after = w.reduced(BACKWARD, rank) if w.who.all_reduces else None
                self._compute(w.key("fine", BACKWARD, j), j, rank, w.segments[j - 1], after)
                if j > 1:
                    after = [w.key("fine", BACKWARD, j)] if w.who.all_reduces else None
                    self._compute(w.key("adapter", BACKWARD, j), j, rank, w.adapters[j - 2], after)
                if self._reads_message(w, j):
                    self._send_x(w, j, BACKWARD)
        self._compute(ActionKey("stem", BACKWARD), 1, 0, self.times.stem)

    def wait_for_all(self) -> None:
        """The paper's order: forward, coarse blocks after all segments; backward, segments after all coarse blocks."""
        first = {("coarse", FORWARD): ("fine", FORWARD), ("fine", BACKWARD): ("coarse", BACKWARD)}
        for key, task in self.tasks.items():
            if before := first.get((key.kind, key.direction)):
                task.after += [o for o in self.tasks if (o.kind, o.direction) == before and o.m == key.m]

    def _fine(self, w: _TimedWindow, j: int) -> None:
        """C^j and g^j, and what they read where it comes by message."""
        rank = w.rank_of(j)
        before = self.windows[w.place - 1] if w.place else None
        begin = before.reduced(FORWARD, rank) if before is not None and before.who.all_reduces else None
        if self._reads_message(w, j):
            self._send_x(w, j, FORWARD)
        if j > 1:
            self._compute(w.key("adapter", FORWARD, j), j, rank, w.adapters[j - 2], begin)
        self._compute(w.key("fine", FORWARD, j), j, rank, w.segments[j - 1], begin if j == 1 else None)

    def _reads_message(self, w: _TimedWindow, j: int) -> bool:
        """Whether one rank sends what segment j begins with, and not an all-reduce."""
        if w.place:
            return not self.windows[w.place - 1].who.all_reduces
        return j > 1 and self.plan.source == "stem"

    def _coarse_backward(self, w: _TimedWindow) -> None:
        """The coarse blocks of a window, and the gradients of z that they send."""
        members = w.who.members
        of_sums = {
            w.who.last_of(rank) for rank in members if rank != members[-1] and w.who.peers[rank].z_to != rank + 1
        }  # interfaces behind ranks of a sum, and before one: their gradients are sent by _spread
        for rank in reversed(members):
            if w.who.peers[rank].terms:
                self._spread(w, rank)
        for j in range(w.n - 1, 0, -1):
            self._compute(w.key("coarse", BACKWARD, j), j + 1, w.rank_of(j + 1), w.coarse[j - 1])
            if j not in of_sums:
                self._send_z(w, j + 1, j, BACKWARD)

    def _sum(self, w: _TimedWindow, rank: int) -> int:
        """A rank's part of a sum over ranks: differences ``y - x``, the sums that others send, and where to with it.

        Gives the first of its segments whose coarse block is not part of the sum.
        """
        run, peers = w.who.runs[rank], w.who.peers[rank]
        first, last = run[0], run[-1]
        total = self._differences(w, rank, peers.terms, [])
        half = w.half(peers.terms[-1] - 1)
        for index, sender in enumerate(peers.sums_from, 1):
            key = w.key("sum", FORWARD, last, index)
            self._compute(key, last, rank, half, [*total, w.key("send sum", FORWARD, w.who.last_of(sender))])
            total = [key]
        if peers.sum_to is not None:
            self._transfer(w.key("send sum", FORWARD, last), w, last, w.who.runs[peers.sum_to][0], total)
        if peers.z_from is None:
            return last + 1
        before, begin = w.who.last_of(peers.z_from), peers.terms.stop
        z = w.key("send z", FORWARD, before)  # of before the sum: it goes straight to the end, and is added there
        self._transfer(z, w, before, first)
        self._compute(w.key("coarse", FORWARD, begin - 2), begin - 1, rank, half, [z, *total])
        return begin

    def _differences(self, w: _TimedWindow, rank: int, terms: Iterable[int], total: list[ActionKey]) -> list[ActionKey]:
        """``y - x`` of some segments, added to what there is: one key, or none; gives the key of all of it."""
        for j in terms:
            key = w.key("difference", FORWARD, j)
            seconds = w.coarse[j - 2] if total else w.half(j - 1)
            self._compute(key, j, rank, seconds, [w.key("fine", FORWARD, j), *total])
            total = [key]
        return total

    def _spread(self, w: _TimedWindow, rank: int) -> None:
        """One gradient for all ranks of a sum: straight to the one before it, the way of the sums to the others."""
        run, peers = w.who.runs[rank], w.who.peers[rank]
        arrival = [w.key("send z", BACKWARD, run[-1])]
        if peers.z_from is not None:  # the sum ends here
            end = w.key("coarse", BACKWARD, peers.terms[-1] - 1)
            arrival = waits_for(end, self.lengths, self.plan.source)
            before = w.who.last_of(peers.z_from)
            self._transfer(w.key("send z", BACKWARD, before), w, run[0], before, arrival)
        for sender in reversed(peers.sums_from):
            last = w.who.last_of(sender)
            self._transfer(w.key("send z", BACKWARD, last), w, run[0], last, arrival)

    # Sums over all ranks, which all of them get ----------------------------------------------------------------------

    def _all_reduce(self, w: _TimedWindow) -> None:
        """w_m: each rank's y_1 or differences, summed over all ranks."""
        parts: list[ActionKey] = []
        for rank in w.who.members:
            run = w.who.runs[rank]
            begin = [w.key("fine", FORWARD, 1)] if 1 in run else []
            parts += self._differences(w, rank, [j for j in run if j > 1], begin)
        self._around_ring(w, FORWARD, parts)

    def _all_reduce_gradient(self, w: _TimedWindow) -> None:
        """The gradient of w_m: what the segments of the next window give."""
        after = self.windows[w.place + 1]
        parts = [after.key("adapter", BACKWARD, j) for j in range(2, after.n + 1)]
        self._around_ring(w, BACKWARD, [*parts, after.key("fine", BACKWARD, 1)])

    def _around_ring(self, w: _TimedWindow, direction: Direction, parts: list[ActionKey]) -> None:
        """A part of the all-reduce for each rank, which ends on the next one."""
        members = w.who.members
        rounds = math.ceil(math.log2(len(members)))
        for rank in members:
            j = w.who.last_of(rank)
            to, space = (rank + 1) % len(members), w.rows.segments[-1].y
            self._add_transfer(w.key("all-reduce", direction, j), j, rank, to, space, parts, rounds)

    # Tasks -----------------------------------------------------------------------------------------------------------

    def _compute(
        self, key: ActionKey, j: int, rank: int, seconds: Seconds, after: Iterable[ActionKey] | None = None
    ) -> None:
        """Add a task to a rank's programme; what it needs is the equation's where ``after`` is none."""
        needs = waits_for(key, self.lengths, self.plan.source) if after is None else after
        self.tasks[key] = _Task(j=j, rank=rank, seconds=seconds[key.direction == BACKWARD], after=list(needs))
        self.programs[rank].append(key)

    def _send_x(self, w: _TimedWindow, j: int, direction: Direction) -> None:
        """What a window begins with, from the stem or the end of the window before; or its gradient, the other way."""
        before = self.windows[w.place - 1] if w.place else None
        ends = [(1, 0) if before is None else (before.n, before.who.owner), (j, w.rank_of(j))]
        (here, rank), (_, to) = ends if direction == FORWARD else ends[::-1]
        self._add_transfer(w.key("send x", direction, j), here, rank, to, w.rows.segments[0].x, None)

    def _send_z(self, w: _TimedWindow, j: int, to: int, direction: Direction) -> None:
        """z_j to the next segment, or its gradient back."""
        self._transfer(w.key("send z", direction, min(j, to)), w, j, to)

    def _transfer(
        self, key: ActionKey, w: _TimedWindow, j: int, to: int, after: Iterable[ActionKey] | None = None
    ) -> None:
        """A transfer between the ranks of two segments of a window."""
        space = w.rows.segments[min(j, to) - 1].y
        self._add_transfer(key, j, w.rank_of(j), w.rank_of(to), space, after)

    def _add_transfer(
        self,
        key: ActionKey,
        j: int,
        rank: int,
        to: int,
        space: Space,
        after: Iterable[ActionKey] | None,
        rounds: int = 1,
    ) -> None:
        """A transfer, or so many one after the other; :meth:`timed` passes over it where it stays on one rank."""
        needs = waits_for(key, self.lengths, self.plan.source) if after is None else after
        size = space.numel * space.torch_dtype.itemsize * self.batch
        self.tasks[key] = _Task(j=j, rank=rank, to=to, size=size, rounds=rounds, after=list(needs))

    # When it is done ------------------------------------------------------------------------------------------------

    def timed(self, transfer: Transfer) -> tuple[Action, ...]:
        """Every task as early as what it needs and its rank's order allow.

        There is no queue of events, and no tie to break between them: a rank computes in its programme's order, and any
        number of transfers pass at once. Each start is the latest end among what a task needs and the task before it
        on its rank, so one pass in topological order finds them all. Ties matter only for the order of the list:
        actions of equal start and end stand in the order of that pass, which depends on the order in which tasks were
        added and on nothing else, so that equal plans give equal timelines.
        """
        needs = self._all_needs()
        edges = self._edges(needs)
        spans: dict[ActionKey, Span] = {}
        for key in TopologicalSorter(edges).static_order():
            task = self.tasks[key]
            start = max((spans[other].end for other in edges[key]), default=0.0)
            spans[key] = Span(task.rank, task.j, start, start + task.duration(transfer), task.to, key.m)
        return in_order(spans, needs)

    def seconds(self, transfer: Transfer) -> float:
        """When the last action of :meth:`timed` ends: the longest path alone, for steps that are compared."""
        before = {key: other for program in self.programs for other, key in itertools.pairwise(program)}
        ends: dict[ActionKey, float] = {}
        path: list[ActionKey] = []
        for last in self.tasks:
            path.append(last)
            while path:
                key = path[-1]
                if key in ends:
                    path.pop()
                    continue
                task, start, complete = self.tasks[key], 0.0, True
                for other in (*task.after, before[key]) if key in before else task.after:
                    end = ends.get(other)
                    if end is None:
                        path.append(other)
                        complete = False
                    elif end > start:
                        start = end
                if complete:  # a transfer within one rank is none
                    ends[key] = start if task.to == task.rank else start + task.duration(transfer)
        return max(ends.values(), default=0.0)

    def _all_needs(self) -> dict[ActionKey, list[ActionKey]]:
        """What each task waits for that takes time: all but transfers within one rank."""
        return {key: self._needs(task) for key, task in self.tasks.items() if task.to != task.rank}

    def _edges(self, needs: dict[ActionKey, list[ActionKey]]) -> dict[ActionKey, list[ActionKey]]:
        """The same, and the task before each on its rank."""
        before = {key: [other] for program in self.programs for other, key in itertools.pairwise(program)}
        return {key: [*needs[key], *before.get(key, [])] for key in needs}

    def _needs(self, task: _Task) -> list[ActionKey]:
        """What a task waits for; through transfers within one rank, which are none."""
        needs: dict[ActionKey, None] = {}
        for key in task.after:
            other = self.tasks[key]
            needs.update(dict.fromkeys(self._needs(other) if other.to == other.rank else [key]))
        return list(needs)
