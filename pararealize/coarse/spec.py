"""The rows of a plan for adapters and coarse blocks: plain data, decided before any module is built."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from pararealize.analysis.causality import Causality
from pararealize.analysis.space import Space
from pararealize.argument_types import typed_fields
from pararealize.errors import PlanError

__all__ = [
    "STRICT",
    "AdapterPlan",
    "AdapterReads",
    "CoarsePlan",
    "CorrectionPlan",
    "Cost",
    "Count",
    "Number",
    "NumberedRow",
    "RowCost",
    "Text",
    "numbered",
]

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
# of files, whose numbers may be anything: sums and products of such numbers are still numbers
Cost: TypeAlias = Annotated[float, Field(ge=0, le=1e60)]
Count: TypeAlias = Annotated[int, Field(ge=0, lt=2**63)]
Number: TypeAlias = Annotated[int, Field(ge=1, lt=2**31)]
AdapterReads: TypeAlias = Literal["input", "stem", "window"]  # what C^{m,j} reads
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


def numbered(letter: str, m: int, j: int) -> str:
    """What part j of window m is called: ``g2_3``, and ``g3`` in a network of one window (m = 0)."""
    return f"{letter}{m}_{j}" if m else f"{letter}{j}"


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class NumberedRow(RowCost):
    """A row of segment ``j`` of window ``m``, both from 1; ``m`` is 0 where the network has one window alone."""

    m: Count = 0
    j: Number

    LETTER: ClassVar[str] = ""

    @property
    def name(self) -> str:
        """What the part is called in the network: ``C2_3``, or ``C3`` in a network of one window."""
        return numbered(self.LETTER, self.m, self.j)

    @property
    def index(self) -> tuple[int, int]:
        """``(m, j)``."""
        return self.m, self.j


@typed_fields(PlanError)
@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class AdapterPlan(NumberedRow):
    """C^{m,j}, j from 2: from the source's space ``x`` to the segment's input ``y``, by ``recipe``.

    The source of the first window's adapters is the network's ``"input"`` or its ``"stem"``, that of the others the
    ``"window"`` before them. ``causal`` says, for each axis, on which side alone it reads; null for both, and empty
    where it is so for all. An adapter that is the identity may have a correction beside it, of a ``kind`` and, where
    that has one, a ``rank``.
    """

    LETTER: ClassVar[str] = "C"

    source: AdapterReads
    x: Space
    y: Space
    parameters: Count
    flops_forward: Count
    flops_backward: Count
    recipe: Text
    causal: tuple[Causality | None, ...] = ()
    kind: Literal["", "scale", "low-rank", "dense"] = ""
    rank: Count = 0


@typed_fields(PlanError)
@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class CoarsePlan(NumberedRow):
    """F^{m,j}, j from 1: from X_j (``x``) to X_{j+1} (``y``) of window m, on segment j + 1's device.

    ``units`` and ``kernel`` are 0 where the kind has none; ``note`` says where the kind is not the one asked for;
    ``causal``, for each axis, on which side alone it reads: null for both, and empty where it is so for all.
    """

    LETTER: ClassVar[str] = "F"

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


@typed_fields(PlanError)
@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class CorrectionPlan(NumberedRow):
    """K^{m,j}: a linear map of channels that is added to the output of segment (m, j), in its space ``y``.

    ``rank`` is 0 where the kind has none. It reads y_j - x_j where it ``differs``, otherwise y_j alone; and x_j besides
    where it ``reads_x``. A ``"folded"`` one reads what ``layer``, the segment's last one, adds to the stream, and will
    be within that layer's weights.
    """

    LETTER: ClassVar[str] = "K"

    kind: Literal["scale", "low-rank", "dense", "folded"]
    rank: Count
    differs: bool
    reads_x: bool
    y: Space
    parameters: Count
    flops_forward: Count
    flops_backward: Count
    layer: Text = ""
