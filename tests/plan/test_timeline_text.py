"""The table of a timeline: all that it says, and no line too wide."""

from __future__ import annotations

from pararealize.plan.simulation import simulate
from tests.plans import plan_of


def test_a_row_a_rank_and_what_follows():
    timeline = simulate(plan_of([2, 1]), ranks=2, rate=1e3)
    lines = str(timeline).splitlines()
    assert lines[0] == "Made: one simulated step, n = 3 on 2 devices, times in ms"
    assert lines[2].split()[:3] == ["rank", "segments", "fine"]
    fine, forward = timeline.busy(0, "fine") * 1e3, timeline.busy(0, direction="forward") * 1e3
    row = lines[3].split()
    assert row[:3] == ["0", "1–2", f"{fine:.2f}"]
    assert f"{forward:.2f}" in row
    assert len(lines[4].split()) == len(row)
    text = str(timeline)
    assert f"speed-up {timeline.speedup:.2f}×, efficiency {100 * timeline.efficiency:.0f} %" in text
    assert "critical path: " + " → ".join(map(str, timeline.critical_path)) in text
    assert "note: batch 2" in text


def test_no_line_is_wider_than_120():
    assert max(map(len, str(simulate(plan_of([8, 8, 8]), latency=1e-5)).splitlines())) <= 120
