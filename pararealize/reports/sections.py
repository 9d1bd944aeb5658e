"""Values that the library gives -> the sections of a page, in the order in which the values stand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pararealize.analysis.blocks import BlockChain
from pararealize.calibration.report import Calibration
from pararealize.calibration.tuning_report import FineTuning
from pararealize.comparison.report import Comparison
from pararealize.errors import OutputError
from pararealize.plan.plan import Plan
from pararealize.plan.timeline import Timeline
from pararealize.restacking.module import Restacking
from pararealize.strategies.comparison import StrategyComparison
from pararealize.table import duration, from_to, quantity, share, shortened, time_unit
from pararealize.tradeoffs.report import Tradeoff
from pararealize.train.run.history import History
from pararealize.train.run.score import Score

from .elements import Section, Table
from .lanes import lanes_of
from .network import section_of_chain, section_of_plan
from .results import (
    section_of_calibration,
    section_of_comparison,
    section_of_history,
    section_of_score,
    section_of_tradeoff,
    section_of_tuning,
)
from .strategy_table import section_of_strategies

__all__ = ["KINDS", "sections_of"]

MOST_NAMES = 200  # of actions on a critical path


def sections_of(values: Sequence[Any], *, title: str) -> list[Section]:
    """A section for each value; a chain of blocks goes into those of its plans, and timelines share one.

    Args:
        values: in the order of the page.
        title: of the network.

    Raises:
        OutputError: a value is nothing that a page shows.
    """
    if strangers := [value for value in values if not isinstance(value, KINDS)]:
        kinds = ", ".join(kind.__name__ for kind in KINDS)
        raise OutputError(
            f"a report cannot show a {type(strangers[0]).__name__}; pass values of {kinds} (of a network its .plan)"
        )
    return [
        section
        for place, value in enumerate(values)
        for section in _sections(value, values, first=_is_first(place, values), title=title, place=place)
    ]


def _is_first(place: int, values: Sequence[Any]) -> bool:
    """Whether no value of this type stands before it."""
    return not any(type(before) is type(values[place]) for before in values[:place])


def _sections(value: Any, values: Sequence[Any], *, first: bool, title: str, place: int) -> Iterator[Section]:
    if isinstance(value, Section):
        yield value
    elif isinstance(value, Plan):
        chain = next((chain for chain in values if isinstance(chain, BlockChain) and _fits(value, chain)), None)
        yield section_of_plan(value, chain, title=title or value.model, prefix=f"p{place}-")
    elif isinstance(value, BlockChain):
        if not any(isinstance(plan, Plan) and _fits(plan, value) for plan in values):
            yield section_of_chain(value, title=title or type(value.capture.model).__name__)
    elif isinstance(value, Timeline):
        if first:
            yield _section_of_timelines([value for value in values if isinstance(value, Timeline)])
    else:
        yield MAKERS[type(value)](value)


def _fits(plan: Plan, chain: BlockChain) -> bool:
    names = [block.name for block in chain.blocks]
    return len(names) == sum(segment.blocks for segment in plan.segments) and all(
        (names[segment.first], names[segment.last]) == (segment.first_block, segment.last_block)
        for segment in plan.segments
    )


def _section_of_timelines(timelines: Sequence[Timeline]) -> Section:
    """One step in time; several timelines are drawn to one scale."""
    end = max(timeline.step for timeline in timelines)
    names = {"simulated": "predicted", "recorded": "measured"}
    figures, tables, facts, notes = [], [], [], []
    several = len({timeline.ranks for timeline in timelines}) > 1
    for timeline in timelines:
        devices = quantity(timeline.ranks, "device")
        name = names[timeline.origin]
        figures.append(lanes_of(timeline, title=f"One step on {devices}, {name}", end=end))
        name += f" on {devices}" if several else ""
        tables.append(_ranks(timeline, name))
        facts.append((f"a step, {name}", duration(timeline.step)))
        facts.append((f"speed-up, {name}", f"{timeline.speedup:.2f}×"))
        facts.append((f"efficiency, {name}", share(timeline.efficiency)))
        path = list(map(str, timeline.critical_path))
        more = f" → … {len(path) - MOST_NAMES} more" if len(path) > MOST_NAMES else ""
        notes.append(f"critical path, {name}: {' → '.join(path[:MOST_NAMES])}{more}")
        notes += timeline.notes
    return Section(
        title="One step in time",
        lead=f"{shortened(timelines[0].model, 80)}, n = {timelines[0].n}. The original's own work takes "
        f"{duration(timelines[0].serial)}, one part after the other; speed-up and efficiency compare with that.",
        facts=tuple(facts),
        figures=tuple(figures),
        tables=tuple(tables),
        notes=tuple(dict.fromkeys(notes)),
    )


def _ranks(timeline: Timeline, name: str) -> Table:
    unit, scale = time_unit(timeline.step)
    head = ("rank", "segments", "fine", "adapter", "coarse", "stem, head", "forward", "backward", "idle", "idle %")
    rows = []
    for rank in range(timeline.ranks):
        third = timeline.busy(rank, "adapter") + timeline.busy(rank, "relax")
        ends = timeline.busy(rank, "stem") + timeline.busy(rank, "head")
        parts = timeline.busy(rank, "fine"), third, timeline.busy(rank, "coarse"), ends
        directions = timeline.busy(rank, direction="forward"), timeline.busy(rank, direction="backward")
        idle = timeline.idle(rank)
        numbers = (f"{part * scale:.2f}" for part in (*parts, *directions, idle))
        percent = f"{100 * idle / timeline.step:.0f}" if timeline.step else None
        rows.append((str(rank), from_to(timeline.segments(rank)), *numbers, percent))
    return Table(caption=f"Ranks, {name}, times in {unit}", head=head, rows=tuple(rows), columns="ll")


def _section_of_restacking(restacking: Restacking) -> Section:
    """Which blocks became steps of a Runge-Kutta method, and which did not and why."""
    steps = tuple(
        (str(g), shortened(", ".join(group.blocks), 400), "ReLU" if group.post else "")
        for g, group in enumerate(restacking.groups, 1)
    )
    reasons: dict[str, list[str]] = {}
    for other in restacking.left:
        reasons.setdefault(other.reason, []).append(other.name)
    left = tuple((reason, str(len(names)), shortened(", ".join(names), 400)) for reason, names in reasons.items())
    learnable = "" if restacking.adaptive is None else f", learnable ({restacking.adaptive})"
    tables = (
        Table(caption="Steps", head=("step", "blocks, one an f", "then"), rows=steps, columns="rll"),
        Table(caption="Left as they were", head=("why", "number", "blocks"), rows=left, columns="lrl"),
    )
    return Section(
        title="High-order stacking",
        lead=f"{restacking.model} as {restacking.scheme}: {quantity(len(steps), 'step')} of "
        f"{quantity(restacking.stages, 'residual block')} each, with no new parameters but learnable steps.",
        facts=(
            ("scheme", restacking.scheme),
            ("order", str(restacking.order)),
            ("stages", str(restacking.stages)),
            ("h", f"{restacking.h:g}{learnable}"),
        ),
        tables=tuple(table for table in tables if table.rows),
    )


MAKERS: dict[type, Callable[[Any], Section]] = {
    Calibration: section_of_calibration,
    FineTuning: section_of_tuning,
    Tradeoff: section_of_tradeoff,
    History: section_of_history,
    Score: section_of_score,
    Comparison: section_of_comparison,
    StrategyComparison: section_of_strategies,
    Restacking: _section_of_restacking,
}
KINDS: tuple[type, ...] = (Plan, BlockChain, Timeline, *MAKERS, Section)
