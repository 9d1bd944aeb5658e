"""Plan, Times -> Timeline: who does what when, simulated without devices.

Each rank computes one thing at a time, in a fixed order; a transfer takes ``latency + bytes / bandwidth`` and occupies
nobody. So the start of everything follows from what it needs and from what its rank did before: no queue, no chance.

    rank 0   C^1 g^1 ─z_1→                                                      ∇ g^1 C^1
    rank 1   C^2 g^2 ····· F^1 ─z_2→                              F^1 ─∇z_1→ g^2 C^2
    rank 2   C^3 g^3 ················ F^2  head │ head  F^2 ─∇z_2→ g^3 C^3
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING, Literal

from pararealize.errors import PlanError

from .actions import Action, Direction, Key, Kind, waits_for
from .communication import Crossing, cross
from .timeline import Timeline
from .times import RATE, Seconds, Times, plan_times

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .plan import Plan

__all__ = ["simulate"]

FORWARD: Literal["forward"] = "forward"
BACKWARD: Literal["backward"] = "backward"


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
        costs: seconds of its parts, as :func:`~pararealize.plan.times.measure_network` gives them; otherwise those of
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
    step = _Step(plan, times, runs, cross(runs, same), batch)
    step.forward()
    if training:
        step.backward()
    notes = [f"batch {batch}, latency {latency:g} s, bandwidth {bandwidth:g} bytes/s"]
    if costs is None and plan.unit == "flops":
        notes.append(f"counted work at {rate:g} operations a second")
    if costs is not None or plan.unit == "seconds":
        notes.append("measured seconds")
    if not overlap:
        step.wait_for_all()
        notes.append("no overlap: the coarse chain waits for all segments, and they for it")
    if reduce_linear:
        notes.append("linear coarse blocks within a stage are reduced and broadcast")
    actions = step.timed(latency, bandwidth)
    return Timeline(
        model=plan.model, n=plan.n, ranks=len(runs), origin="simulated", actions=actions, notes=tuple(notes)
    )


def _runs(n: int, ranks: int, assignment: Sequence[int] | None) -> list[tuple[int, int]]:
    """First and last segment of each rank."""
    if not 1 <= ranks <= n:
        raise PlanError(f"ranks is {ranks}; pass 1 to {n}, the number of segments")
    if assignment is not None and (sum(assignment) != n or min(assignment) < 1):
        raise PlanError(f"assignment is {list(assignment)!r}; pass how many of the {n} segments each device has")
    held = [(j - 1) * ranks // n for j in range(1, n + 1)]
    counts = [held.count(rank) for rank in range(ranks)] if assignment is None else assignment
    ends = itertools.accumulate(counts)
    return [(end - count + 1, end) for end, count in zip(ends, counts, strict=True)]


def _check(plan: Plan, costs: Times | None, latency: float, bandwidth: float, batch: int) -> None:
    faults = []
    if not (latency >= 0 and math.isfinite(latency)) or not bandwidth > 0:
        faults.append(f"latency is {latency:g} s and bandwidth {bandwidth:g} bytes/s; they cannot be")
    if batch < 1:
        faults.append(f"batch is {batch}; pass 1 or more")
    if costs is not None and len(costs.segments) != plan.n:
        faults.append(f"costs are of {len(costs.segments)} segments and the plan has {plan.n}; measure that network")
    if faults:
        raise PlanError("; ".join(faults))


@dataclasses.dataclass(slots=True, kw_only=True)
class _Task:
    """An action whose time is not known yet."""

    kind: Kind
    j: int
    rank: int
    to: int | None = None
    seconds: float = 0.0
    size: int = 0  # bytes of a transfer
    after: list[Key]


class _Step:
    """The tasks of one step, and the order in which each rank computes its own."""

    def __init__(
        self,
        plan: Plan,
        times: Times,
        runs: Sequence[tuple[int, int]],
        crossings: Sequence[Crossing],
        batch: int,
    ) -> None:
        self.plan, self.times, self.batch, self.n = plan, times, batch, plan.n
        self.runs, self.crossings = runs, crossings
        self.ranks = [rank for rank, (first, last) in enumerate(runs) for _ in range(first, last + 1)]
        self.tasks: dict[Key, _Task] = {}
        self.programs: list[list[Key]] = [[] for _ in runs]

    # What there is to do --------------------------------------------------------------------------------------------

    def forward(self) -> None:
        """The forward pass: everything that waits for no other segment, then the coarse chain, then the head."""
        self._compute("stem", FORWARD, "stem", 1, self.times.stem)
        for j in range(1, self.n + 1):
            if j > 1:
                if self.plan.source == "stem":
                    self._send(f"x{j}", FORWARD, 1, j)
                self._compute(f"C{j}", FORWARD, "adapter", j, self.times.adapters[j - 2])
            self._compute(f"g{j}", FORWARD, "fine", j, self.times.segments[j - 1])
        for (first, last), crossing in zip(self.runs, self.crossings, strict=True):
            begin = max(first, 2)
            if crossing.terms:
                total = self._sum(last, crossing)
                begin = last + 1
                if crossing.z_from is not None:  # z of before the sum goes straight to its end, and is added there
                    before, begin = self.runs[crossing.z_from][1], crossing.terms.stop
                    self._send(f"z{before}", FORWARD, before, first)
                    after: list[Key] = [(f"z{before}", FORWARD), total]
                    self._compute(f"F{begin - 2}", FORWARD, "coarse", begin - 1, self._half(begin - 2), after)
            for j in range(begin, last + 1):
                self._send(f"z{j - 1}", FORWARD, j - 1, j)
                self._compute(f"F{j - 1}", FORWARD, "coarse", j, self.times.coarse[j - 2])
        self._compute("head", FORWARD, "head", self.n, self.times.head)

    def backward(self) -> None:
        """The backward pass: on every rank the coarse blocks first, so that gradients leave early."""
        self._compute("head", BACKWARD, "head", self.n, self.times.head)
        within = {
            self.runs[rank][1] for rank, crossing in enumerate(self.crossings) if crossing.z_to != rank + 1
        }  # interfaces behind ranks of a sum, and before one
        for rank, crossing in reversed(list(enumerate(self.crossings))):
            if crossing.terms:
                self._spread(rank, crossing)
        for j in range(self.n - 1, 0, -1):
            self._compute(f"F{j}", BACKWARD, "coarse", j + 1, self.times.coarse[j - 1])
            if j not in within:
                self._send(f"z{j}", BACKWARD, j + 1, j)
        for j in range(self.n, 0, -1):
            self._compute(f"g{j}", BACKWARD, "fine", j, self.times.segments[j - 1])
            if j > 1:
                self._compute(f"C{j}", BACKWARD, "adapter", j, self.times.adapters[j - 2])
                if self.plan.source == "stem":
                    self._send(f"x{j}", BACKWARD, j, 1)
        self._compute("stem", BACKWARD, "stem", 1, self.times.stem)

    def wait_for_all(self) -> None:
        """The paper's order: forward, coarse blocks after all segments; backward, segments after all coarse blocks."""
        fine: list[Key] = [key for key, task in self.tasks.items() if task.kind == "fine"]
        coarse: list[Key] = [key for key, task in self.tasks.items() if task.kind == "coarse"]
        for key in coarse:
            self.tasks[key].after += [other for other in fine if other[1] == key[1] == FORWARD]
        for key in fine:
            self.tasks[key].after += [other for other in coarse if other[1] == key[1] == BACKWARD]

    def _sum(self, last: int, crossing: Crossing) -> Key:
        """Differences ``y - x`` of a rank's segments, and the sums that others send, until it has the whole."""
        held: list[Key] = []
        for j in crossing.terms:
            seconds = self.times.coarse[j - 2] if held else self._half(j - 1)
            self._compute(f"d{j}", FORWARD, "coarse", j, seconds, [(f"g{j}", FORWARD), *held])
            held = [(f"d{j}", FORWARD)]
        for r, sender in enumerate(crossing.sums_from, 1):
            sum_of: Key = (f"t{self.runs[sender][1]}", FORWARD)
            self._compute(f"s{last}.{r}", FORWARD, "coarse", last, self._half(crossing.terms[-1] - 1), [*held, sum_of])
            held = [(f"s{last}.{r}", FORWARD)]
        if crossing.sum_to is not None:
            self._send(f"t{last}", FORWARD, last, self.runs[crossing.sum_to][0], held)
        return held[0]

    def _spread(self, rank: int, crossing: Crossing) -> None:
        """One gradient for all ranks of a sum: straight to the one before it, the way of the sums to the others."""
        first, held = self.runs[rank][0], f"z{self.runs[rank][1]}"
        arrived: list[Key] = [(held, BACKWARD)]
        if crossing.z_from is not None:  # the sum ends here
            arrived = waits_for((f"F{crossing.terms[-1] - 1}", BACKWARD), self.n)
            before = self.runs[crossing.z_from][1]
            self._send(f"z{before}", BACKWARD, first, before, arrived)
        for sender in reversed(crossing.sums_from):
            last = self.runs[sender][1]
            self._send(f"z{last}", BACKWARD, first, last, arrived)

    def _half(self, j: int) -> Seconds:
        """One of the two operations, subtraction and addition, that an identity F^j is."""
        forward, backward = self.times.coarse[j - 1]
        return forward / 2, backward / 2

    def _compute(
        self, name: str, way: Direction, kind: Kind, j: int, seconds: Seconds, after: Iterable[Key] | None = None
    ) -> None:
        key: Key = (name, way)
        needs = waits_for(key, self.n, self.plan.source) if after is None else after
        taken, rank = seconds[way == BACKWARD], self.ranks[j - 1]
        self.tasks[key] = _Task(kind=kind, j=j, rank=rank, seconds=taken, after=list(needs))
        self.programs[rank].append(key)

    def _send(self, name: str, way: Direction, j: int, to: int, after: Iterable[Key] | None = None) -> None:
        """A transfer between the ranks of two segments; :meth:`timed` passes over it where that is one rank."""
        key: Key = (name, way)
        needs = waits_for(key, self.n, self.plan.source) if after is None else after
        segments = self.plan.segments
        space = segments[0].x if name.startswith("x") else segments[min(j, to) - 1].y
        size = space.numel * space.torch_dtype.itemsize * self.batch
        self.tasks[key] = _Task(
            kind="transfer", j=j, rank=self.ranks[j - 1], to=self.ranks[to - 1], size=size, after=list(needs)
        )

    # When it is done ------------------------------------------------------------------------------------------------

    def timed(self, latency: float, bandwidth: float) -> tuple[Action, ...]:
        """Every task as early as what it needs and its rank's order allow."""
        needs = {key: self._needs(task) for key, task in self.tasks.items() if task.to != task.rank}
        order = {key: [before] for program in self.programs for before, key in itertools.pairwise(program)}
        spans: dict[Key, tuple[float, float]] = {}
        for key in TopologicalSorter({key: [*needs[key], *order.get(key, [])] for key in needs}).static_order():
            task = self.tasks[key]
            start = max((spans[other][1] for other in (*needs[key], *order.get(key, []))), default=0.0)
            taken = latency + task.size / bandwidth if task.kind == "transfer" else task.seconds
            spans[key] = start, start + taken
        rows = sorted(spans, key=spans.__getitem__)
        place = {key: i for i, key in enumerate(rows)}
        return tuple(
            Action(
                name=key[0],
                kind=self.tasks[key].kind,
                direction=key[1],
                j=self.tasks[key].j,
                rank=self.tasks[key].rank,
                to=self.tasks[key].to,
                start=spans[key][0],
                end=spans[key][1],
                after=tuple(sorted(place[other] for other in needs[key])),
            )
            for key in rows
        )

    def _needs(self, task: _Task) -> list[Key]:
        """What a task waits for; through transfers within one rank, which are none."""
        found: dict[Key, None] = {}
        for key in task.after:
            other = self.tasks[key]
            found.update(dict.fromkeys(self._needs(other) if other.to == other.rank else [key]))
        return list(found)
