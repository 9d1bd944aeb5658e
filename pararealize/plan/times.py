"""Plan -> Times: forward and backward seconds of every part, as the plan prices them."""

import dataclasses
from typing import TypeAlias

from pararealize.argument_types import typed_arguments
from pararealize.coarse.spec import RowCost
from pararealize.errors import PlanError

from .spec import RATE, PlannedRows

__all__ = ["RATE", "Seconds", "Times", "plan_times"]

Seconds: TypeAlias = tuple[float, float]  # forward, backward


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Seconds, forward and backward, of every part of a parareal network, each by itself.

    Attributes:
        stem: C^1.
        segments: g^1 to g^n, of one window after the other, each with the correction of its output.
        adapters: C^2 to C^n likewise.
        coarse: F^1 to F^{n-1} likewise, each with the subtraction before and the addition behind it.
        head: h.
        corrections: what the corrections of all segments take together, which is in ``segments``.
    """

    stem: Seconds
    segments: tuple[Seconds, ...]
    adapters: tuple[Seconds, ...]
    coarse: tuple[Seconds, ...]
    head: Seconds
    corrections: Seconds = (0.0, 0.0)

    def __post_init__(self) -> None:
        n = len(self.segments)
        if n < 1 or len(self.adapters) != len(self.coarse) or len(self.coarse) >= n:
            raise PlanError(
                f"{n} segments, {len(self.adapters)} adapters, {len(self.coarse)} coarse blocks; "
                "a window of n segments has n - 1 of each, n ≥ 1"
            )

    @property
    def serial(self) -> Seconds:
        """The original's own parts, one after the other."""
        parts, (forward, backward) = (self.stem, *self.segments, self.head), self.corrections
        return sum(part[0] for part in parts) - forward, sum(part[1] for part in parts) - backward


@typed_arguments(PlanError)
def plan_times(plan: PlannedRows, *, batch: int | None = None, rate: float = RATE) -> Times:
    """What a plan's costs are in seconds.

    Counted work of one sample is multiplied by the batch and divided by the rate. Measured seconds stay as they are.

    Args:
        plan: the plan, of either unit.
        batch: samples a step; the plan's own when left out.
        rate: operations a second, for plans that were counted: ``work / seconds`` of one's own device.

    Raises:
        PlanError: a plan measured at one batch is asked for another.
    """
    if batch is None:
        batch = plan.batch
    if batch < 1 or not rate > 0:
        raise PlanError(f"batch is {batch} and rate is {rate:g} operations a second; both have to be positive")
    if plan.unit == "seconds" and batch != plan.batch:
        raise PlanError(
            f"this plan was measured at batch {plan.batch} and says nothing of batch {batch}; "
            'measure again at that batch, or make the plan with cost="flops"'
        )
    scale = 1.0 if plan.unit == "seconds" else batch / rate

    def of(row: RowCost) -> Seconds:
        return row.cost_forward * scale, row.cost_backward * scale

    of_corrections = {row.index: of(row) for row in plan.corrections}
    return Times(
        stem=of(plan.stem),
        segments=tuple(_plus(of(row), of_corrections.get(row.index)) for row in plan.segments),
        adapters=tuple(map(of, plan.adapters)),
        coarse=tuple(map(of, plan.coarse_blocks)),
        head=of(plan.head),
        corrections=(sum(c[0] for c in of_corrections.values()), sum(c[1] for c in of_corrections.values())),
    )


def _plus(seconds: Seconds, more: Seconds | None) -> Seconds:
    return seconds if more is None else (seconds[0] + more[0], seconds[1] + more[1])
