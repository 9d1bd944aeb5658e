"""Prices, a cut -> Plan: one row for the stem, the head, and every segment, adapter and coarse block, and the notes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from pararealize.analysis.causality import causal_axes
from pararealize.coarse.adapter import corrected_recipe, describe_adapter
from pararealize.coarse.kinds import Coarse, kind_for
from pararealize.coarse.output_correction import correction_kind, correction_rank
from pararealize.coarse.spec import AdapterPlan, CoarsePlan, CorrectionPlan
from pararealize.errors import CoarseError
from pararealize.plan.corrections import correction_shapes
from pararealize.plan.fingerprints import fingerprint
from pararealize.plan.plan import PartPlan, Plan, SegmentPlan, Window
from pararealize.plan.spec import RATE, windows_of
from pararealize.plan.transfer import Transfer
from pararealize.table import quantity

from .prices import Price, Prices

__all__ = ["PlanRequest", "plan_of", "planned_cut"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """What a plan shows of what was asked for.

    Attributes:
        coarse: the name of the coarse kind, which may be ``"auto"``.
        cuts: ``"cost"``, ``"paper"`` or the names of blocks.
        devices: n of them.
        notes: what was decided beforehand, and why.
        transfer: what messages take; nothing where they are free.
        rate: operations a second, with which counted work is compared with them.
    """

    coarse: str
    cuts: str | tuple[str, ...]
    devices: tuple[str, ...]
    notes: Sequence[str] = ()
    transfer: Transfer | None = None
    rate: float = RATE


def plan_of(prices: Prices, coarse: Coarse, windows: Sequence[Sequence[int]], request: PlanRequest) -> Plan:
    """The plan for a cut, and a warning among its notes where it does not pay.

    See :func:`planned_cut` for the arguments.
    """
    plan = planned_cut(prices, coarse, windows, request)
    if plan.n == 1:
        return plan
    if note := _causality_note(plan):
        plan = replace(plan, notes=(*plan.notes, note))
    plan = replace(plan, notes=(*plan.notes, *prices.dependencies.notes))
    speedup = plan.speedup
    if speedup >= 1:
        return plan
    ratio = 1 / speedup if speedup else math.inf
    warning = (
        f"this plan does not pay: its longest path is {ratio:.2f} times the original's step; "
        'take fewer segments or a cheaper coarse kind, such as "linear"'
    )
    return replace(plan, notes=(*plan.notes, warning))


def planned_cut(prices: Prices, coarse: Coarse, windows: Sequence[Sequence[int]], request: PlanRequest) -> Plan:
    """The plan for a cut without a judgement on it, for cuts that are compared.

    Args:
        prices: the network with what everything costs.
        coarse: the kind of its coarse blocks.
        windows: of each window the first block of each segment.
        request: what was asked for.
    """
    chain, costs = prices.chain, prices.costs
    n, several = max(map(len, windows)), len(windows) > 1
    starts = [start for window in windows for start in window]
    ends = iter([*starts[1:], len(chain.blocks)])
    segments: list[SegmentPlan] = []
    adapters: list[AdapterPlan] = []
    coarse_blocks: list[CoarsePlan] = []
    for number, window in enumerate(windows, 1):
        m, offset = number if several else 0, n - len(window) if several and number == len(windows) else 0
        for j, first in enumerate(window, 1):
            last = next(ends) - 1
            segments.append(_segment(prices, (m, j), first, last, request.devices[offset + j - 1]))
            if j > 1:
                adapters.append(_adapter(prices, coarse, (m, j), first, window[0]))
                coarse_blocks.append(_coarse_block(prices, coarse, (m, j - 1), first, last))
    corrections = [
        row for window in windows_of(segments, adapters, coarse_blocks) for row in _corrections(prices, coarse, window)
    ]
    _check_folds(coarse, windows, corrections)
    notes = [*request.notes, *dict.fromkeys(row.note for row in coarse_blocks if row.note), *costs.notes]
    if n < prices.n:
        notes.insert(0, f"n is {n}, not {prices.n}: the longest window has {quantity(n, 'block')}")
    if any(row.kind == "custom" for row in coarse_blocks):
        notes.append(
            f"coarse blocks of {request.coarse} are not counted: their cost is not known before they are built"
        )
    return Plan(
        model=type(chain.capture.model).__name__,
        fingerprint=chain.once("fingerprint", partial(fingerprint, chain)),
        n=n,
        coarse=request.coarse,
        cuts=request.cuts,
        source=prices.source,
        batch=chain.capture.batch,
        unit=costs.unit,
        stem=PartPlan(**prices.end(chain.stem, costs.stem).columns()),
        segments=tuple(segments),
        adapters=tuple(adapters),
        coarse_blocks=tuple(coarse_blocks),
        head=PartPlan(**prices.end(chain.head, costs.head).columns()),
        notes=tuple(notes),
        corrections=tuple(corrections),
        latency=0.0 if request.transfer is None else request.transfer.latency,
        bandwidth=_finite(request.transfer),
        rate=request.rate,
        granularity=chain.granularity,
    )


def _finite(transfer: Transfer | None) -> float | None:
    """The bandwidth, or nothing where it is unlimited."""
    return None if transfer is None or math.isinf(transfer.bandwidth) else transfer.bandwidth


def _segment(prices: Prices, index: tuple[int, int], first: int, last: int, device: str) -> SegmentPlan:
    blocks = prices.chain.blocks[first : last + 1]
    price = replace(prices.blocks(range(first, last + 1)), cost=prices.costs.split_step(first, last))
    m, j = index
    return SegmentPlan(
        m=m,
        j=j,
        first=first,
        last=last,
        first_block=blocks[0].name,
        last_block=blocks[-1].name,
        blocks=len(blocks),
        x=blocks[0].x,
        y=blocks[-1].y,
        device=device,
        **price.columns(),
    )


def _adapter(prices: Prices, coarse: Coarse, index: tuple[int, int], first: int, begin: int) -> AdapterPlan:
    """C^{m,j}, which leads into block ``first`` of the window that begins with block ``begin``."""
    target, sides = prices.chain.blocks[first].x, prices.seen_by_adapter(first, begin)
    columns = prices.adapter(first, begin).columns()
    origin, reads, (m, j) = prices.origin(begin), prices.reads(begin), index
    recipe = describe_adapter(origin, target, reads=reads, sides=sides)
    row = AdapterPlan(m=m, j=j, source=reads, x=origin, y=target, recipe=recipe, causal=sides, **columns)
    request = correction_kind(coarse)
    wanted = None if request is None else request.of_adapters
    if wanted is None or recipe != "identity":
        return row
    kind, rank = wanted[0], correction_rank(*wanted, target)
    price = prices.correction(kind, rank, target, differs=False, reads_x=False)
    return replace(row, kind=kind, rank=rank, recipe=corrected_recipe(recipe, kind, rank), **price.columns())


def _coarse_block(prices: Prices, coarse: Coarse, index: tuple[int, int], first: int, last: int) -> CoarsePlan:
    """F^{m,j}, which stands for segment j + 1 of window m: blocks ``first`` to ``last``."""
    m, j = index
    x, y, sides = prices.chain.blocks[first].x, prices.chain.blocks[last].y, prices.seen_by(first, last)
    kind, note = kind_for(coarse, x, y, sides)
    units, kernel = prices.units(kind), prices.kernel(kind, first, last)
    columns = prices.coarse_block(kind, units, kernel, first, last).columns()
    return CoarsePlan(m=m, j=j, kind=kind, units=units, kernel=kernel, x=x, y=y, note=note, causal=sides, **columns)


def _corrections(prices: Prices, coarse: Coarse, window: Window) -> Iterator[CorrectionPlan]:
    """The K^{m,j} of a window, with their prices."""
    last = {segment.j: segment.last for segment in window.segments}
    for shape in correction_shapes(coarse, window):
        if shape.kind == "folded":
            if layer := prices.layer_at_end(last[shape.j]):
                yield CorrectionPlan(**shape._asdict(), **Price(0, (0, 0), (0, 0)).columns(), layer=layer)
            continue
        price = prices.correction(shape.kind, shape.rank, shape.y, differs=shape.differs, reads_x=shape.reads_x)
        yield CorrectionPlan(**shape._asdict(), **price.columns())


def _check_folds(coarse: Coarse, windows: Sequence[Sequence[int]], corrections: Sequence[CorrectionPlan]) -> None:
    request = correction_kind(coarse)
    parallel = any(len(window) > 1 for window in windows)
    if request is not None and request.kind == "folded" and parallel and not corrections:
        raise CoarseError(
            f"coarse = {coarse!r}, and no segment ends with a linear layer or convolution whose output only adds to "
            'the stream, in which a map could stand; pass "low-rank", whose maps stand beside the segments'
        )


def _causality_note(plan: Plan) -> str:
    """Along which axes adapters and coarse blocks read one side alone."""
    rows = [*(row.causal for row in plan.adapters), *(row.causal for row in plan.coarse_blocks)]
    if not any(rows):
        return ""
    who = "adapters and coarse blocks" if all(rows) else "some adapters and coarse blocks"
    axes = "; ".join(dict.fromkeys(map(causal_axes, filter(None, rows))))
    return f"causal along {axes} is read by {who}"
