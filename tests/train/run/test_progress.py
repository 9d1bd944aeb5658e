"""Rates and what is left."""

import pytest

from pararealize.train.run import progress
from pararealize.train.run.progress import Clock


def test_a_clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    clock = Clock(begun=100.0)
    for _ in range(4):
        now[0] += 3.0  # a second of which is the step
        clock.took(1.0, 8)
    assert clock.rate == 8.0
    assert clock.seconds == 12.0
    assert clock.left(2) == pytest.approx(6.0)
    for _ in range(progress.WINDOW):
        clock.took(0.5, 8)
    assert clock.rate == 16.0


def test_a_clock_before_its_first_step():
    assert Clock().rate == 0.0
    assert Clock().left(0) == 0.0
