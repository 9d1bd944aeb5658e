"""Seconds and bytes of parts, sums of gradients by hand, and the bounds that they keep."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pararealize.profiles import Link
from pararealize.strategies.network_costs import BUCKET, all_reduce, exposed_reduction
from tests.strategy_costs import costs_of


def test_parts_are_all_of_the_network():
    costs = costs_of()
    assert sum(map(sum, costs.parts(4))) == pytest.approx(costs.costs(4).total) == pytest.approx(costs.step(4))
    assert costs.step(4, training=False) < costs.step(4)
    assert costs.costs(4) is costs.costs(4)
    values = 4 * 16 + 16 + 8 * (16 * 16 + 16) + 16 * 3 + 3
    assert sum(costs.gradients) == sum(costs.weights) == 4 * values
    assert sum(costs.states) == 4 * 4 * values  # parameters, gradients and Adam's two
    assert costs.memory(0, 8, 2) - costs.memory(0, 8, 1) == pytest.approx(sum(costs.saved))
    assert costs.interfaces == (4 * 16,) * 8


@settings(max_examples=20)
@given(st.integers(2, 300), st.floats(1.0, 1e9), st.floats(0.0, 1e-3), st.floats(1e3, 1e12))
def test_a_sum_is_the_faster_of_ring_and_tree(devices, size, latency, bandwidth):
    link = Link(name="a", latency=latency, bandwidth=bandwidth)
    seconds = all_reduce(link, size, devices)
    assert seconds >= 2 * (devices - 1) / devices * size / bandwidth * (1 - 1e-12)  # no way sends less
    assert seconds <= 2 * (devices - 1) * (latency + size / devices / bandwidth) * (1 + 1e-12)
    faster = Link(name="a", latency=latency, bandwidth=2 * bandwidth)
    assert all_reduce(faster, size, devices) <= seconds
    assert all_reduce(link, size, 1) == 0.0


def test_what_is_left_of_sums_behind_the_backward_pass():
    link = Link(name="a", latency=0.0, bandwidth=float(BUCKET))  # two devices: a bucket takes a second
    assert exposed_reduction(link, [1.0, 1.0], [BUCKET, BUCKET], 2) == 1.0  # the last bucket alone
    assert exposed_reduction(link, [0.5, 0.5], [BUCKET, BUCKET], 2) == 1.5
    assert exposed_reduction(link, [1.0, 1.0], [BUCKET, BUCKET], 1) == 0.0
    assert exposed_reduction(link, [5.0, 1.0], [0, BUCKET], 2) == 0.0  # hidden
