"""Strategies side by side: tables, curves, and the advice first."""

import dataclasses

from pararealize.reports.charts import Chart
from pararealize.reports.strategy_table import section_of_strategies
from pararealize.strategies.comparison import CurvePoint, StrategyComparison
from pararealize.strategies.strategy import Strategy


def test_tables_and_curves() -> None:
    values = {"devices": 1, "step": 0.01, "work": 0.01, "memory": 2e9, "sent": 0.0, "fits": True}
    one = Strategy(name="one device", detail="alone", exact=True, **values)
    two = dataclasses.replace(one, name="parareal", devices=2, step=0.004, sent=1e6, fits=False, exact=False)
    points = (("one device", 1, 1.0), ("parareal", 2, 2.5), ("one device", 2, 1.0))
    curves = tuple(CurvePoint(axis="devices", value=v, name=name, speedup=s, fits=True) for name, v, s in points)
    curves += (CurvePoint(axis="batch", value=8, name="parareal", speedup=2.5, fits=True),)
    compared = StrategyComparison(
        model="net", devices=2, batch=8, device="cpu", memory=1e9, link="none", basis="counted", training=(two, one),
        latency=(), curves=curves, notes=("a note",), advice="run it",
    )  # fmt: skip
    section = section_of_strategies(compared)
    assert section.lead == "run it"
    (table,) = section.tables
    assert table.rows[0] == (
        "parareal", "alone", "2", "4 ms", "2.50×", "2.00GB", "1.00MB", "125 %", "too large, another network",
    )  # fmt: skip
    chart, other = section.figures
    assert isinstance(chart, Chart)
    assert chart.rows == (("1", "1", None), ("2", "1", "2.5"))
    assert [series.name for series in other.series] == [series.name for series in chart.series]  # one look each
    assert section.notes == ("counted", "a note")
