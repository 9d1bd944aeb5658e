"""Rates and what is left."""

import pytest

from pararealize.train.run import progress
from pararealize.train.run.progress import RateMeter


def test_a_meter(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    meter = RateMeter(start=100.0)
    for _ in range(4):
        now[0] += 3.0  # a second of which is the step
        meter.add(1.0, 8)
    assert meter.rate == 8.0
    assert meter.seconds == 12.0
    assert meter.left(2) == pytest.approx(6.0)
    for _ in range(progress.RECENT):
        meter.add(0.5, 8)
    assert meter.rate == 16.0


def test_a_meter_before_its_first_step():
    assert RateMeter().rate == 0.0
    assert RateMeter().left(0) == 0.0
