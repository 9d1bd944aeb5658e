"""Timelines to scale: bars stand where actions are, and messages lead from row to row."""

from __future__ import annotations

import pytest

from pararealize.plan.simulation import simulate
from pararealize.reports import lanes
from pararealize.reports.lanes import ROW, ZOOMS, lanes_of
from tests.drawn_plans import make_plan

from .pages import some_timeline


def test_bars_are_actions_to_scale() -> None:
    timeline = some_timeline()
    drawn = lanes_of(timeline, title="t", end=2 * timeline.step)
    assert len(drawn.rows) == 3
    assert len(drawn.bars) == sum(len(timeline.of(rank)) for rank in range(3))
    for rank in range(3):
        widths = sum(bar.width for bar in drawn.bars if rank * ROW <= bar.y < (rank + 1) * ROW)
        assert widths == pytest.approx(50 * timeline.busy(rank) / timeline.step, abs=0.01)
    assert max(bar.x + bar.width for bar in drawn.bars) == pytest.approx(50, abs=0.01)
    assert {bar.zoom for bar in drawn.bars} <= {0, *ZOOMS}
    assert any(bar.backward for bar in drawn.bars)
    assert drawn.bars[0].text.startswith(f"{drawn.bars[0].name}: ")


def test_messages_lead_from_the_rank_that_sends() -> None:
    timeline = simulate(make_plan(2), latency=1e-4, rate=1e12)
    drawn = lanes_of(timeline, title="t", end=timeline.step)
    there, back = drawn.arrows
    assert there.y < ROW < there.to_y
    assert back.to_y < ROW < back.y
    assert there.to_x - there.x == pytest.approx(100e-4 / timeline.step, rel=1e-3)


def test_of_too_many_bars_the_longest_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    timeline = some_timeline()
    monkeypatch.setattr(lanes, "MOST_BARS", 3)
    drawn = lanes_of(timeline, title="t", end=timeline.step)
    longest = sorted((a.seconds for r in range(3) for a in timeline.of(r)), reverse=True)[:3]
    assert sorted((bar.width for bar in drawn.bars), reverse=True) == pytest.approx(
        [100 * seconds / timeline.step for seconds in longest], abs=1e-3
    )
    assert drawn.left_out > 0


def test_a_timeline_of_nothing() -> None:
    drawn = lanes_of(some_timeline(actions=()), title="t", end=0.0)
    assert (drawn.bars, drawn.arrows) == ((), ())
