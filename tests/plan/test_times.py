"""Seconds of a network's parts, priced from a plan."""

from __future__ import annotations

import pytest

from pararealize.errors import PlanError
from pararealize.plan.times import Times, plan_times
from tests.plans import plan_of


def test_counted_work_over_a_rate():
    times = plan_times(plan_of([3]), batch=5, rate=10.0)
    assert times.stem == times.head == (0.5, 1.0)
    assert times.segments == ((0.5, 1.0),) * 3
    assert times.adapters == times.coarse == ((0.5, 1.0),) * 2
    assert times.serial == (2.5, 5.0)


def test_measured_seconds_are_of_one_batch():
    import dataclasses

    plan = dataclasses.replace(plan_of([3]), unit="seconds")
    assert plan_times(plan, rate=10.0).stem == (1, 2)
    with pytest.raises(PlanError, match="measured at batch 2 and says nothing of batch 8"):
        plan_times(plan, batch=8)


def test_numbers_of_parts_have_to_fit():
    with pytest.raises(PlanError, match="2 segments, 0 adapters, 1 coarse blocks"):
        Times(stem=(0, 0), segments=((1, 1), (1, 1)), adapters=(), coarse=((0, 0),), head=(0, 0))
