"""A StrategyComparison -> Section: what a step takes by every strategy, curves of speed-up, and the advice."""

from __future__ import annotations

from collections.abc import Sequence

from pararealize.strategies.comparison import StrategyComparison
from pararealize.strategies.strategy import Strategy
from pararealize.table import count, duration, quantity, share

from .charts import Chart, Series
from .elements import Section, Table

__all__ = ["section_of_strategies"]

AXES = {"devices": "Speed-up against devices", "batch": "Speed-up against batch"}
HEAD = ("strategy", "how", "devices", "step", "speed-up", "memory a device", "sent", "busy", "")


def section_of_strategies(comparison: StrategyComparison) -> Section:
    """The tables for a training step and for one sample, and how speed-ups go with devices and batch."""
    fastest, devices = comparison.fastest, quantity(comparison.devices, "device")
    facts = (
        [] if fastest is None else [("fastest that fits", fastest.name), ("its speed-up", f"{fastest.speedup:.2f}×")]
    )
    charts = (_chart(comparison, axis) for axis in AXES)
    tables = (
        _table(f"A training step of {quantity(comparison.batch, 'sample')} on {devices}", comparison.training),
        _table(f"One sample, forward, on {devices}", comparison.latency),
    )
    return Section(
        title="Strategies",
        lead=comparison.advice,
        facts=(*facts, ("device", comparison.device), ("link", comparison.link)),
        figures=tuple(chart for chart in charts if not chart.is_empty),
        tables=tuple(table for table in tables if table.rows),
        notes=(comparison.basis, *comparison.notes),
    )


def _chart(comparison: StrategyComparison, axis: str) -> Chart:
    points = [point for point in comparison.curves if point.axis == axis]
    values = sorted({point.value for point in points})  # about powers of two: equally far from one another
    names = dict.fromkeys(point.name for point in comparison.curves)  # in both charts, so that each has one look
    series = tuple(
        Series(name=name, points=tuple((float(values.index(p.value)), p.speedup) for p in points if p.name == name))
        for name in names
    )
    description = "Over one device with the same batch, predicted; whether it fits into memory is in the tables."
    return Chart(
        title=AXES[axis], x=axis, y="speed-up", series=series, description=description, names=tuple(map(str, values))
    )


def _table(caption: str, strategies: Sequence[Strategy]) -> Table:
    rows = tuple(
        (
            row.name, row.detail, str(row.devices), duration(row.step), f"{row.speedup:.2f}×", f"{count(row.memory)}B",
            f"{count(row.sent)}B" if row.sent else None, share(row.utilisation),
            ", ".join(filter(None, ("" if row.fits else "too large", "" if row.exact else "another network"))),
        )
        for row in strategies
    )  # fmt: skip
    return Table(caption=caption, head=HEAD, rows=rows, columns="llrrrrrrl")
