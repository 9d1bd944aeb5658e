"""Rows of a plan, Times, links -> the actions of one step, sums over ranks where they make it shorter."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Hashable, Sequence
from typing import Literal, TypeAlias

from .actions import Action
from .schedule import Schedule
from .spec import PlannedRows
from .times import Times
from .transfer import Transfer

__all__ = ["ReduceLinear", "StepActions", "device_runs", "step_actions", "step_seconds"]

ReduceLinear: TypeAlias = bool | Literal["auto"]


_REMEMBERED = 64  # steps; each holds its parts' seconds
_steps: dict[Hashable, float] = {}  # of the last plans, by all that they depend on
_steps_lock = threading.Lock()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepActions:
    """One step in time.

    Attributes:
        actions: in order of start.
        reduces: whether coarse blocks that are the identity are summed over ranks.
    """

    actions: tuple[Action, ...]
    reduces: bool

    @property
    def seconds(self) -> float:
        """When the last action ends; the first starts at 0."""
        return max((action.end for action in self.actions), default=0.0)


def step_actions(
    plan: PlannedRows,
    times: Times,
    runs: Sequence[tuple[int, int]],
    *,
    batch: int,
    transfer: Transfer,
    reduce_linear: ReduceLinear = "auto",
    overlap: bool = True,
    training: bool = True,
) -> StepActions:
    """The actions of one step, as early as what they need allows.

    Args:
        plan: its rows.
        times: seconds of its parts.
        runs: first and last segment of each rank.
        batch: samples a step.
        transfer: of messages.
        reduce_linear: whether coarse blocks that are the identity are summed over ranks; ``"auto"`` for the shorter of
            both steps, and for a row of messages where they are equal: what ranks choose by themselves.
        overlap: ``False`` for the paper's order.
        training: ``False`` for the forward pass alone.
    """
    ways = [
        _schedule(plan, times, runs, batch, reduces=reduces, overlap=overlap, training=training)
        for reduces in _choices(plan, reduce_linear)
    ]
    best = min(ways, key=lambda way: way.seconds(transfer)) if len(ways) > 1 else ways[0]
    return StepActions(actions=best.timed(transfer), reduces=best.reduce_linear)


def step_seconds(
    plan: PlannedRows,
    times: Times,
    runs: Sequence[tuple[int, int]],
    *,
    batch: int,
    transfer: Transfer,
    training: bool = True,
) -> float:
    """What :func:`step_actions` takes, without the actions; what was asked for lately is remembered.

    A cut is judged, printed with its speed-up and compared with other strategies: the same step each time.
    """
    rows = (
        tuple((row.m, row.x, row.y) for row in plan.segments),
        tuple((row.name, row.kind) for row in plan.coarse_blocks),
    )
    key = times, tuple(runs), batch, transfer, training, plan.source, rows
    seconds = _steps.get(key)
    if seconds is None:
        seconds = min(
            _schedule(plan, times, runs, batch, reduces=reduces, training=training).seconds(transfer)
            for reduces in _choices(plan, "auto")
        )
        with _steps_lock:  # other threads convert, too
            while len(_steps) >= _REMEMBERED:
                del _steps[next(iter(_steps))]
            _steps[key] = seconds
    return seconds


def _choices(plan: PlannedRows, reduce_linear: ReduceLinear) -> tuple[bool, ...]:
    """Whether coarse blocks are summed: the ways that are compared, a row of messages first."""
    if reduce_linear != "auto":
        return (reduce_linear,)
    return (False, True) if any(row.kind == "linear" and row.x == row.y for row in plan.coarse_blocks) else (False,)


def _schedule(
    plan: PlannedRows,
    times: Times,
    runs: Sequence[tuple[int, int]],
    batch: int,
    *,
    reduces: bool,
    overlap: bool = True,
    training: bool = True,
) -> Schedule:
    schedule = Schedule(plan, times, runs, batch, reduce_linear=reduces)
    schedule.forward()
    if training:
        schedule.backward()
    if not overlap:
        schedule.wait_for_all()
    return schedule


def device_runs(n: int) -> list[tuple[int, int]]:
    """First and last segment of each rank, where every segment of a window has a rank of its own."""
    return [(j, j) for j in range(1, n + 1)]
