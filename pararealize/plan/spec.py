"""The rows of a plan for the network's own parts: stem, segments, head; and windows of them.

Rows of adapters and coarse blocks are in ``coarse/spec.py``.
"""

import dataclasses
from collections.abc import Iterable
from itertools import groupby
from operator import attrgetter
from typing import ClassVar, TypeVar

from pydantic.dataclasses import dataclass

from pararealize.analysis.space import Space
from pararealize.argument_types import typed_fields
from pararealize.coarse.spec import STRICT, AdapterPlan, CoarsePlan, CorrectionPlan, Count, NumberedRow, RowCost, Text
from pararealize.errors import PlanError

__all__ = ["PartPlan", "SegmentPlan", "Window", "windows_of"]

Row = TypeVar("Row", bound=NumberedRow)


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
