"""What was measured: curves, errors at interfaces, error against speed, scores."""

from __future__ import annotations

import dataclasses

from pararealize.multigrid.monitor import Event
from pararealize.reports.charts import Chart
from pararealize.reports.results import (
    section_of_calibration,
    section_of_comparison,
    section_of_history,
    section_of_score,
    section_of_tradeoff,
    section_of_tuning,
)
from pararealize.tradeoffs.report import Tradeoff, TradeoffRow
from pararealize.train.run.history import History, StepRow
from pararealize.train.run.score import Score
from tests.calibration.test_report import calibration
from tests.calibration.test_tuning_report import tuning
from tests.comparison.test_report import WHOLE
from tests.drawn_plans import make_plan

from .pages import some_history


def charts_of(section: object) -> list[Chart]:
    return [figure for figure in section.figures if isinstance(figure, Chart)]  # type: ignore[attr-defined]


def test_curves_are_the_rows() -> None:
    history = some_history(3)
    history.rows.append(Event(step=4, why="residual 0.5", forward=2, backward=1))
    section = section_of_history(history)
    loss, error, gradient = charts_of(section)
    assert loss.series[0].points == ((1, 1.0), (2, 0.5), (3, 1 / 3))
    assert loss.series[2].points[0] == (0.6, 2.0)
    assert (loss.log, error.percent) == (True, True)
    assert gradient.series[0].points[0] == (0.6, 1.0)
    assert [table.caption for table in section.tables] == ["Epochs", "What the monitor changed"]
    assert ("test accuracy", "87.50 %") in section.facts
    assert section_of_history(History()).figures == ()


def test_of_very_many_steps_some_are_drawn() -> None:
    rows = [StepRow(step=i, epoch=1, lr=0.1, loss=1.0, error=0.5, gradient=None) for i in range(1, 2001)]
    assert len(charts_of(section_of_history(History(rows=list(rows))))[0].series[2].points) <= 300


def test_residual_norms_before_and_after() -> None:
    section = section_of_calibration(calibration())
    inputs, outputs = charts_of(section)
    assert [series.name for series in inputs.series] == ["before", "after"]
    assert inputs.series[1].points == ((0, 0.5),)
    assert outputs.names == ("z 2", "output")
    assert outputs.series[1].points == ((0, 0.00012), (1, 0.1))
    assert ("accuracy of the original", "92.5 %") in section.facts
    assert section.tables[0].rows[1] == ("after", "0.1", "95.00 %", "90.00 %")
    bare = section_of_calibration(calibration(accuracy=None, held_out=False))
    assert "errors on the same" in bare.lead


def test_error_against_speed() -> None:
    first, second = make_plan(2), make_plan(3, uneven=True)
    rows = tuple(TradeoffRow(plan=plan, predicted=None, error=e) for plan, e in ((first, 0.1), (second, 0.4)))
    front = Tradeoff(model="Net", coarse="low-rank", samples=10, tested=5, measure="", rows=rows)
    section = section_of_tradeoff(front)
    (chart,) = charts_of(section)
    assert [series.name for series in chart.series] == ["2 devices", "3 devices", "nothing is better in both"]
    assert chart.series[0].points == ((first.speedup, 0.1),)
    assert len(section.tables[0].rows) == 2
    measured = dataclasses.replace(front, measure="cosine", rows=(dataclasses.replace(rows[0], agreement=0.5),))
    assert section_of_tradeoff(measured).tables[0].rows[0][5] == "0.5"
    assert len(section_of_tradeoff(measured).tables[0].letters) == len(section_of_tradeoff(measured).tables[0].rows[0])


def test_side_by_side() -> None:
    section = section_of_comparison(WHOLE)
    assert ("relative error of the output", "0.25") in section.facts
    quality, times = section.tables
    assert quality.rows == (("original", "95.00 %", "0.1000"), ("parareal network", "90.00 %", "0.2000"))
    assert times.rows == (("1", "10 ms", "5 ms", "2.00", "9"),)
    bare = dataclasses.replace(WHOLE, original=None, parareal=None, same_class=None, latencies=())
    assert section_of_comparison(bare).tables == ()


def test_fine_tuning() -> None:
    report = tuning()
    section = section_of_tuning(report)
    (chart,) = charts_of(section)
    assert chart.series[0].points[0] == (0, report.loss_before)
    assert section.notes == (report.verdict.sentence,)
    assert section.tables[0].rows[1][1] == f"{report.loss_before:.4g}"


def test_a_score() -> None:
    assert dict(section_of_score(Score(loss=0.25, error=0.1, count=10)).facts)["test accuracy"] == "90.00 %"
