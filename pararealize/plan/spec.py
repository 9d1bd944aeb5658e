"""The rows of a plan for the network's own parts: stem, segments, head; windows of them; and all rows of a plan.

Rows of adapters and coarse blocks are in ``coarse/spec.py``.
"""

import dataclasses
from collections.abc import Iterable
from itertools import groupby
from operator import attrgetter
from typing import Annotated, ClassVar, Literal, TypeAlias, TypeVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from pararealize.analysis.space import Space
from pararealize.argument_types import typed_fields
from pararealize.coarse.spec import STRICT, AdapterPlan, CoarsePlan, CorrectionPlan, Count, NumberedRow, RowCost, Text
from pararealize.errors import PlanError

__all__ = ["RATE", "PartPlan", "PlannedRows", "Rate", "SegmentPlan", "Window", "windows_of"]

Row = TypeVar("Row", bound=NumberedRow)
RATE = 1e12  # operations a second of a device of which nothing is known
# of operations or bytes a second; as small as a file may say, times are still numbers
Rate: TypeAlias = Annotated[float, Field(ge=1e-60, le=1e60)]


@typed_fields(PlanError)
@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class PartPlan(RowCost):
    """The stem or the head: parameters and FLOPs per sample."""

    parameters: Count
    flops_forward: Count
    flops_backward: Count


@typed_fields(PlanError)
@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class SegmentPlan(NumberedRow):
    """g^{m,j}, j from 1: blocks ``first`` to ``last`` (0-based, inclusive), from X_{j-1} (``x``) to X_j (``y``).

    FLOPs are per sample.
    """

    LETTER: ClassVar[str] = "g"

    first: Count
    last: Count
    first_block: Text
    last_block: Text
    blocks: Count
    x: Space
    y: Space
    parameters: Count
    flops_forward: Count
    flops_backward: Count
    device: Text

    @property
    def label(self) -> str:
        """What people call it: ``segment 3``, or ``segment 2,3`` in window 2."""
        return f"segment {self.m},{self.j}" if self.m else f"segment {self.j}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Segments that run at the same time, from the value w_{m-1} that they all begin with to w_m.

    A window of one segment is sequential: it has neither adapters nor coarse blocks.

    Attributes:
        m: its number, from 1.
        segments: g^{m,1} to g^{m,n_m}.
        adapters: C^{m,2} to C^{m,n_m}.
        coarse_blocks: F^{m,1} to F^{m,n_m-1}.
        corrections: the K^{m,j} that there are.
        offset: how many devices stand before that of its first segment. It is 0 but for a last window with fewer
            segments than there are devices: the network ends on the last of them.
    """

    m: int
    offset: int
    segments: tuple[SegmentPlan, ...]
    adapters: tuple[AdapterPlan, ...]
    coarse_blocks: tuple[CoarsePlan, ...]
    corrections: tuple[CorrectionPlan, ...] = ()

    @property
    def n(self) -> int:
        """How many segments it has."""
        return len(self.segments)

    @property
    def sequential(self) -> bool:
        """Whether its blocks run one after the other, as in the original."""
        return self.n == 1

    @property
    def first(self) -> int:
        """Its first block, from 0."""
        return self.segments[0].first

    @property
    def last(self) -> int:
        """Its last block."""
        return self.segments[-1].last


class PlannedRows:
    """What a schedule reads of a plan: every class of plans has these rows, and says what their costs are of.

    Attributes:
        n: the number of segments of the longest window.
        source: what the adapters of the first window read.
        batch: the batch size of the example.
        unit: of every cost.
        stem: the part before the first segment.
        segments: of one window after the other, as are the others.
        adapters: C^{m,j}, j > 1.
        coarse_blocks: F^{m,j}, j < n_m.
        corrections: the K^{m,j} that there are.
        head: the part after the last segment.
    """

    __slots__ = ()

    n: int
    source: Literal["input", "stem"]
    batch: int
    unit: Literal["flops", "seconds"]
    stem: PartPlan
    segments: tuple[SegmentPlan, ...]
    adapters: tuple[AdapterPlan, ...]
    coarse_blocks: tuple[CoarsePlan, ...]
    corrections: tuple[CorrectionPlan, ...]
    head: PartPlan

    @property
    def windows(self) -> tuple[Window, ...]:
        """The rows of segments, adapters and coarse blocks, window by window."""
        return windows_of(self.segments, self.adapters, self.coarse_blocks, self.corrections)


def windows_of(
    segments: Iterable[SegmentPlan],
    adapters: Iterable[AdapterPlan],
    coarse_blocks: Iterable[CoarsePlan],
    corrections: Iterable[CorrectionPlan] = (),
) -> tuple[Window, ...]:
    """The rows of a plan, window by window; those of a network of one window alone have the number 0."""
    grouped = [tuple(rows) for _, rows in groupby(segments, key=attrgetter("m"))]
    n = max(map(len, grouped), default=0)
    by_window = _by_window(adapters), _by_window(coarse_blocks), _by_window(corrections)
    return tuple(
        Window(
            m=m,
            offset=n - len(rows) if m == len(grouped) else 0,
            segments=rows,
            adapters=by_window[0].get(rows[0].m, ()),
            coarse_blocks=by_window[1].get(rows[0].m, ()),
            corrections=by_window[2].get(rows[0].m, ()),
        )
        for m, rows in enumerate(grouped, 1)
    )


def _by_window(rows: Iterable[Row]) -> dict[int, tuple[Row, ...]]:
    number = attrgetter("m")
    return {m: tuple(group) for m, group in groupby(sorted(rows, key=number), key=number)}
