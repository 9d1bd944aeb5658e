"""The rows of a plan for adapters and coarse blocks: plain data, decided before any module is built."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from pararealize.analysis.causality import Causality
from pararealize.analysis.space import Space
from pararealize.argument_types import typed_fields
from pararealize.errors import PlanError

__all__ = ["STRICT", "AdapterPlan", "CoarsePlan", "Cost", "Count", "Number", "RowCost", "Text"]

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
# of files, whose numbers may be anything: sums and products of such numbers are still numbers
Cost: TypeAlias = Annotated[float, Field(ge=0, le=1e60)]
Count: TypeAlias = Annotated[int, Field(ge=0, lt=2**63)]
Number: TypeAlias = Annotated[int, Field(ge=1, lt=2**31)]
Text: TypeAlias = Annotated[str, Field(max_length=20_000)]  # names and notes; real ones are a hundredth of it


@typed_fields(PlanError)
@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class RowCost:
    """The cost of one step of a row, in the plan's unit."""

    cost_forward: Cost
    cost_backward: Cost

    @property
    def cost(self) -> float:
        """Forward and backward."""
        return self.cost_forward + self.cost_backward


@typed_fields(PlanError)
@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class AdapterPlan(RowCost):
    """C^j, j from 2: from the source's space ``x`` to segment j's input ``y``, by ``recipe``.

    ``causal`` says, for each axis, on which side alone it reads; null for both, and empty where it is so for all.
    """

    j: Number
    source: Literal["input", "stem"]
    x: Space
    y: Space
    parameters: Count
    flops_forward: Count
    flops_backward: Count
    recipe: Text
    causal: tuple[Causality | None, ...] = ()


@typed_fields(PlanError)
@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class CoarsePlan(RowCost):
    """F^j, j from 1 to n - 1: from X_j (``x``) to X_{j+1} (``y``), on segment j + 1's device.

    ``units`` and ``kernel`` are 0 where the kind has none; ``note`` says where the kind is not the one asked for;
    ``causal``, for each axis, on which side alone it reads: null for both, and empty where it is so for all.
    """

    j: Number
    kind: Text
    units: Count
    kernel: Count
    x: Space
    y: Space
    parameters: Count
    flops_forward: Count
    flops_backward: Count
    note: Text
    causal: tuple[Causality | None, ...] = ()
