"""Parareal rows: the plan's own step, one segment the original, copies with free sums, windows that cost nothing."""

from __future__ import annotations

import dataclasses

import pytest

from pararealize.plan.simulation import simulate
from pararealize.profiles import HostCosts, Link
from pararealize.strategies.parareal import PararealPlans, segment_counts
from tests.strategy_costs import costs_of


def test_the_step_is_that_of_the_simulation():
    link = Link(name="a", latency=1e-4, bandwidth=1e8)
    plans = PararealPlans(costs_of(link))
    row = plans.strategy(4, 1, 8, "linear")
    assert row.plan.batch == 8
    assert row.step == row.plan.step == simulate(row.plan).step
    assert row.speedup == pytest.approx(row.plan.speedup)
    assert plans.plan(4, 8, "linear") is row.plan
    assert (row.devices, row.n, row.copies, row.exact) == (4, 4, 1, False)
    assert row.plan.transfer == link.transfer


def test_along_batches_is_the_fastest_of_each():
    plans = PararealPlans(costs_of(Link(name="a", latency=1e-4, bandwidth=1e8)))
    sizes = [1, 2, 8, 64]
    found = plans.along_batches(8, 8, sizes, "linear")
    assert list(found) == [8, 2, 1, 64]
    assert {size: row.step for size, row in found.items()} == {
        size: plans.fastest(8, size, 1, kinds=("linear",)).step for size in sizes
    }


def test_one_segment_is_the_original():
    costs = costs_of()
    row = PararealPlans(costs).strategy(1, 1, 8, "linear")
    assert row.step == pytest.approx(costs.step(8))
    assert (row.exact, row.sent) == (True, 0)
    assert row.memory == pytest.approx(costs.memory(0, 8, 8))


def test_copies_with_free_sums_are_a_share_of_the_batch():
    plans = PararealPlans(costs_of(bandwidth=1e30))  # of memory, which gradients pass through
    assert plans.strategy(4, 2, 16, "linear").step == pytest.approx(plans.strategy(4, 1, 8, "linear").step)
    slow = PararealPlans(costs_of(Link(name="a", latency=1e-3, bandwidth=1e5)))
    assert slow.strategy(4, 2, 16, "linear").step > slow.strategy(4, 1, 8, "linear").step


def test_memory_falls_with_segments_and_inference_is_forward_alone():
    plans = PararealPlans(costs_of())
    rows = [plans.strategy(n, 1, 8, "linear") for n in (1, 2, 4)]
    assert rows[0].memory > rows[1].memory > rows[2].memory
    forward = plans.strategy(4, 1, 8, "linear", training=False)
    assert forward.step < rows[2].step
    assert forward.memory < rows[2].memory


def test_the_best_of_all():
    plans = PararealPlans(costs_of(), "linear")
    pure, copied = plans.strategies(8, 8)
    assert pure.step <= min(plans.strategy(n, 1, 8, "linear").step for n in (2, 4, 8)) * 1.05
    assert (copied.copies > 1, pure.copies) == (True, 1)
    assert plans.kinds(4) == ("linear",)
    assert "linear" in PararealPlans(costs_of()).kinds(4)


def test_plans_that_cannot_be_made_are_told_once():
    plans = PararealPlans(costs_of())
    for _ in range(2):
        assert plans.strategy(9, 1, 8, "linear") is None
    assert len(plans.refusals) == 1
    assert "n = 9 is out of range" in plans.refusals[0]


def test_numbers():
    assert segment_counts(8) == [2, 3, 4, 6, 8]
    assert len(segment_counts(1024)) < 20


def test_what_a_step_takes_on_hosts_is_added_once():
    """On all ranks alike: it does not move the cuts."""
    link = Link(name="a", latency=0.0, bandwidth=1e30)
    busy = dataclasses.replace(link, host=HostCosts(step=0.25))
    plain, longer = (PararealPlans(costs_of(one)).strategy(4, 1, 8, "linear") for one in (link, busy))
    assert longer.step == pytest.approx(plain.step + 0.25)
    assert [row.first for row in longer.plan.segments] == [row.first for row in plain.plan.segments]
