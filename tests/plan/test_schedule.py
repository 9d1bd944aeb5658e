"""Windows one after the other: closed forms, and who does what in which order."""

from __future__ import annotations

import pytest

from pararealize.plan.schedule import Schedule
from pararealize.plan.simulation import simulate
from pararealize.plan.times import Times, plan_times
from pararealize.plan.transfer import Transfer
from tests.plans import windows_plan

FREE = (0.0, 0.0)


def equal_times(count: int, windows: int) -> Times:
    """Segments of ten seconds each way, and nothing else."""
    return Times(
        stem=FREE,
        segments=((10.0, 10.0),) * count,
        adapters=(FREE,) * (count - windows),
        coarse=(FREE,) * (count - windows),
        head=FREE,
    )


@pytest.mark.parametrize("n, rounds", [(2, 1), (3, 2), (4, 2)])
def test_an_exchange_a_window_and_a_direction(n: int, rounds: int) -> None:
    """In a chain n - 1 messages, and one to the next window; an all-reduce is ⌈log2 n⌉; the last window has a sum."""
    times = equal_times(3 * n, 3)
    plan = windows_plan([n, n, n])
    chain = simulate(plan, times, latency=1.0, reduce_linear=False)
    assert chain.step == 60 + 2 * (3 * (n - 1) + 2)
    reduced = simulate(plan, times, latency=1.0, reduce_linear=True)
    assert reduced.step == 60 + 2 * (2 * rounds + 1) + 2  # in the last window, and of the stem's output, one message
    parts = [a for a in reduced.actions if a.name.startswith("a")]
    assert len(parts) == 2 * 2 * n
    assert all(a.to == (a.rank + 1) % n and a.seconds == rounds for a in parts)


def test_a_sequential_window_runs_on_the_first_rank() -> None:
    timeline = simulate(windows_plan([1, 2]), equal_times(3, 2), latency=1.0)
    assert [str(a) for a in timeline.of(0)] == ["stem", "g1_1", "g2_1", "g2_1'", "g1_1'", "stem'"]
    assert timeline.step == 40 + 2


def test_the_order_of_a_rank() -> None:
    """Window after window, all segments before coarse blocks, and backward the other way round."""
    plan = windows_plan([4, 4])
    schedule = Schedule(plan, plan_times(plan), [(1, 2), (3, 4)], 1, reduce_linear=False)
    schedule.forward()
    schedule.backward()
    schedule.timed(Transfer(0.0, 1.0))
    forward = ["C1_3", "g1_3", "C1_4", "g1_4", "F1_2", "F1_3", "C2_3", "g2_3", "C2_4", "g2_4", "F2_2", "F2_3", "head"]
    backward = ["head'", "F2_3'", "F2_2'", "g2_4'", "C2_4'", "g2_3'", "C2_3'", "F1_3'", "F1_2'"]
    assert [str(key) for key in schedule.programs[1]][: len(forward) + len(backward)] == forward + backward
