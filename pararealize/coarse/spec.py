"""The rows of a plan for adapters and coarse blocks: plain data, decided before any module is built."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from pararealize.analysis.causality import Causality
from pararealize.analysis.space import Space

__all__ = ["STRICT", "AdapterPlan", "CoarsePlan", "RowCost"]

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class RowCost:
    """The cost of one step of a row, in the plan's unit."""

    cost_forward: float
    cost_backward: float

    @property
    def cost(self) -> float:
        """Forward and backward."""
        return self.cost_forward + self.cost_backward


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class AdapterPlan(RowCost):
    """C^j, j from 2: from the source's space ``x`` to segment j's input ``y``, by ``recipe``.

    ``causal`` says, for each axis, on which side alone it reads; null for both, and empty where it is so for all.
    """

    j: int
    source: Literal["input", "stem"]
    x: Space
    y: Space
    parameters: int
    flops_forward: int
    flops_backward: int
    recipe: str
    causal: tuple[Causality | None, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class CoarsePlan(RowCost):
    """F^j, j from 1 to n - 1: from X_j (``x``) to X_{j+1} (``y``), on segment j + 1's device.

    ``units`` and ``kernel`` are 0 where the kind has none; ``note`` says where the kind is not the one asked for;
    ``causal``, for each axis, on which side alone it reads: null for both, and empty where it is so for all.
    """

    j: int
    kind: str
    units: int
    kernel: int
    x: Space
    y: Space
    parameters: int
    flops_forward: int
    flops_backward: int
    note: str
    causal: tuple[Causality | None, ...] = ()
