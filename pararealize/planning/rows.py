"""Prices, a cut -> Plan: one row for the stem, the head, and every segment, adapter and coarse block, and the notes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pararealize.analysis.causality import causal_axes
from pararealize.coarse.adapter import describe_adapter
from pararealize.coarse.kinds import Coarse, kind_for
from pararealize.coarse.spec import AdapterPlan, CoarsePlan
from pararealize.plan.plan import PartPlan, Plan, SegmentPlan, fingerprint

from .prices import Prices

__all__ = ["PlanRequest", "plan_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """What a plan shows of what was asked for.

    Attributes:
        coarse: the name of the coarse kind, which may be ``"auto"``.
        cuts: ``"cost"``, ``"paper"`` or the names of blocks.
        devices: one a segment.
        notes: what was decided beforehand, and why.
    """

    coarse: str
    cuts: str | tuple[str, ...]
    devices: tuple[str, ...]
    notes: Sequence[str] = ()


def plan_of(prices: Prices, coarse: Coarse, starts: Sequence[int], request: PlanRequest) -> Plan:
    """The plan for a cut, and a warning among its notes where it does not pay.

    Args:
        prices: the network with what everything costs.
        coarse: the kind of its coarse blocks.
        starts: the first block of each segment.
        request: what was asked for.
    """
    chain, costs = prices.chain, prices.costs
    ends = [*starts[1:], len(chain.blocks)]
    spans = [(a, b - 1) for a, b in zip(starts, ends, strict=True)]
    segments = tuple(_segment(prices, j, *span, request.devices[j - 1]) for j, span in enumerate(spans, 1))
    coarse_blocks = tuple(_coarse_block(prices, coarse, j, *span) for j, span in enumerate(spans[1:], 1))
    notes = [*request.notes, *dict.fromkeys(row.note for row in coarse_blocks if row.note), *costs.notes]
    if any(row.kind == "custom" for row in coarse_blocks):
        notes.append(
            f"coarse blocks of {request.coarse} are not counted: their cost is not known before they are built"
        )
    plan = Plan(
        model=type(chain.capture.model).__name__,
        fingerprint=fingerprint(chain),
        n=prices.n,
        coarse=request.coarse,
        cuts=request.cuts,
        source=prices.source,
        batch=chain.capture.batch,
        unit=costs.unit,
        stem=PartPlan(**prices.end(chain.stem, costs.stem).columns()),
        segments=segments,
        adapters=tuple(_adapter(prices, j, segment.first) for j, segment in enumerate(segments[1:], 2)),
        coarse_blocks=coarse_blocks,
        head=PartPlan(**prices.end(chain.head, costs.head).columns()),
        notes=tuple(notes),
        stem_blocks=chain.stem_blocks,
    )
    if plan.n == 1:
        return plan
    if note := _causality_note(plan):
        plan = replace(plan, notes=(*plan.notes, note))
    plan = replace(plan, notes=(*plan.notes, *prices.dependencies.notes))
    if plan.virtual_speedup >= 1:
        return plan
    ratio = plan.critical_path / plan.serial
    warning = (
        f"this plan does not pay: its longest path is {ratio:.2f} times the original's step; "
        'take fewer segments or a cheaper coarse kind, such as "linear"'
    )
    return replace(plan, notes=(*plan.notes, warning))


def _segment(prices: Prices, j: int, first: int, last: int, device: str) -> SegmentPlan:
    blocks = prices.chain.blocks[first : last + 1]
    price = replace(prices.blocks(range(first, last + 1)), cost=prices.costs.split_step(first, last))
    return SegmentPlan(
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


def _adapter(prices: Prices, j: int, first: int) -> AdapterPlan:
    """C^j, which leads into block ``first``."""
    target, sides = prices.chain.blocks[first].x, prices.seen_by_adapter(first)
    columns = prices.adapter(first).columns()
    recipe = describe_adapter(prices.origin, target, from_stem=prices.source == "stem", sides=sides)
    return AdapterPlan(j=j, source=prices.source, x=prices.origin, y=target, recipe=recipe, causal=sides, **columns)


def _coarse_block(prices: Prices, coarse: Coarse, j: int, first: int, last: int) -> CoarsePlan:
    """F^j, which stands for segment j + 1: blocks ``first`` to ``last``."""
    x, y, sides = prices.chain.blocks[first].x, prices.chain.blocks[last].y, prices.seen_by(first, last)
    kind, note = kind_for(coarse, x, y, sides)
    units, kernel = prices.units(kind), prices.kernel(kind, first, last)
    columns = prices.coarse_block(kind, units, kernel, first, last).columns()
    return CoarsePlan(j=j, kind=kind, units=units, kernel=kernel, x=x, y=y, note=note, causal=sides, **columns)


def _causality_note(plan: Plan) -> str:
    """Along which axes adapters and coarse blocks read one side alone."""
    rows = [*(row.causal for row in plan.adapters), *(row.causal for row in plan.coarse_blocks)]
    if not any(rows):
        return ""
    who = "adapters and coarse blocks" if all(rows) else "some adapters and coarse blocks"
    axes = "; ".join(dict.fromkeys(map(causal_axes, filter(None, rows))))
    return f"causal along {axes} is read by {who}"
