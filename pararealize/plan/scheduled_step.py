"""Rows of a plan, Times, links -> the actions of one step, sums over ranks where they make it shorter."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, TypeAlias

from .actions import Action
from .schedule import Schedule
from .spec import PlannedRows
from .times import Times
from .transfer import Transfer

__all__ = ["ReduceLinear", "StepActions", "device_runs", "step_actions"]

ReduceLinear: TypeAlias = bool | Literal["auto"]


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

    def scheduled(reduces: bool) -> StepActions:
        schedule = Schedule(plan, times, runs, batch, reduce_linear=reduces)
        schedule.forward()
        if training:
            schedule.backward()
        if not overlap:
            schedule.wait_for_all()
        return StepActions(actions=schedule.timed(transfer), reduces=reduces)

    if reduce_linear != "auto":
        return scheduled(reduce_linear)
    in_a_row = scheduled(reduces=False)
    if not any(row.kind == "linear" and row.x == row.y for row in plan.coarse_blocks):
        return in_a_row
    summed = scheduled(reduces=True)
    return summed if summed.seconds < in_a_row.seconds else in_a_row


def device_runs(n: int) -> list[tuple[int, int]]:
    """First and last segment of each rank, where every segment of a window has a rank of its own."""
    return [(j, j) for j in range(1, n + 1)]
