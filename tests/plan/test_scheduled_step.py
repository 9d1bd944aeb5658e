"""Which way identities are added up: the faster one, and a row where both take as long; and a step's seconds alone."""

from __future__ import annotations

import itertools

import pytest

from pararealize.plan.scheduled_step import device_runs, step_actions, step_seconds
from pararealize.plan.times import plan_times
from pararealize.plan.transfer import Transfer
from tests.plans import plan_of, windows_plan


def seconds(plan, **how):
    times = plan_times(plan, batch=1, rate=1.0)
    return step_actions(plan, times, device_runs(plan.n), batch=1, **how)


@pytest.mark.parametrize("plan", [plan_of([6], kind="linear"), windows_plan([3, 3, 3])], ids=["one", "several"])
@pytest.mark.parametrize("latency", [0.0, 1.0, 50.0])
def test_auto_is_the_shorter_of_both(plan, latency):
    link = Transfer(latency, 1e9)
    both = {way: seconds(plan, transfer=link, reduce_linear=way).seconds for way in (False, True)}
    chosen = seconds(plan, transfer=link)
    assert chosen.seconds == min(both.values())
    assert chosen.reduces == (both[True] < both[False])


def test_without_identities_there_is_nothing_to_sum():
    assert not seconds(plan_of([4]), transfer=Transfer(1.0, 1e9)).reduces
    assert seconds(plan_of([1]), transfer=Transfer(1.0, 1e9)).seconds == 3 * 3.0


def test_the_papers_order_and_inference():
    plan = plan_of([4])
    link = Transfer(1.0, 1e9)
    whole = seconds(plan, transfer=link).seconds
    assert seconds(plan, transfer=link, overlap=False).seconds >= whole
    assert seconds(plan, transfer=link, training=False).seconds < whole


@pytest.mark.parametrize("source", ["stem", "input"])
@pytest.mark.parametrize("kind", ["linear", "paper"])
@pytest.mark.parametrize("training", [True, False])
def test_seconds_alone_are_those_of_the_actions(source, kind, training):
    """Also where they are remembered: each of these differs from the one before in one thing."""
    whole, halves = device_runs(4), [(1, 2), (3, 4)]
    plans = [plan_of([4], kind=kind, source=source), windows_plan([4, 4, 1], kind=kind, source=source)]
    ways = [(whole, 1, 0.0), (whole, 1, 5.0), (whole, 3, 5.0), (halves, 3, 5.0), (halves, 3, 0.5)]
    for plan, (runs, batch, latency) in itertools.product(plans, ways):
        times = plan_times(plan, batch=batch, rate=1.0)
        asked = {"batch": batch, "transfer": Transfer(latency, 10.0), "training": training}
        expected = step_actions(plan, times, runs, **asked).seconds
        assert [step_seconds(plan, times, runs, **asked) for _ in range(2)] == [pytest.approx(expected)] * 2
