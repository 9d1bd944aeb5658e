"""One device is the sum, and data parallelism with free links is a share of the batch."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pararealize.profiles import HostCosts, Link
from pararealize.strategies.network_costs import all_reduce, exposed_reduction
from pararealize.strategies.replicas import copies_of, data_parallel, one_device
from tests.strategy_costs import costs_of


def test_one_device_is_the_sum():
    costs = costs_of()
    one = one_device(costs, 8)
    assert one.step == pytest.approx(costs.costs(8).total)
    assert (one.speedup, one.utilisation, one.sent, one.fits, one.exact) == (1.0, 1.0, 0.0, True, True)
    assert not one_device(costs_of(memory=1.0), 8).fits


@settings(max_examples=12)
@given(st.sampled_from([2, 4, 8, 16]), st.sampled_from([8, 16, 64]), st.floats(1e6, 1e12), st.floats(1.0, 10.0))
def test_copies(devices, batch, bandwidth, factor):
    costs = costs_of(bandwidth=1e30)  # of memory, which gradients pass through
    free = data_parallel(costs, devices, batch)
    copies = min(devices, batch)
    assert free.step == pytest.approx(costs.step(batch // copies))
    slow, fast = (
        data_parallel(costs_of(Link(name="a", latency=0.0, bandwidth=b), bandwidth=1e30), devices, batch)
        for b in (bandwidth, bandwidth * factor)
    )
    assert free.step * (1 - 1e-9) <= fast.step <= slow.step
    assert slow.memory == free.memory < one_device(costs, batch).memory
    assert slow.sent == pytest.approx(2 * (copies - 1) / copies * sum(costs.gradients))


def test_gradients_pass_through_memory_and_hosts():
    """Written into buckets and out of them; hooks and buffers are of the hosts."""
    at_once, costs = data_parallel(costs_of(bandwidth=1e30), 4, 8), costs_of()
    slower = data_parallel(costs, 4, 8)
    computing = costs.step(2) - costs_of(bandwidth=1e30).step(2)
    assert slower.step - at_once.step - computing == pytest.approx(4 * sum(costs.gradients) / costs.profile.bandwidth)
    link = Link(name="a", latency=0.0, bandwidth=1e30, host=HostCosts(copies=0.25))
    assert data_parallel(costs_of(link), 4, 8).step == pytest.approx(slower.step + 0.25)


def test_no_more_copies_than_samples():
    assert [copies_of(8, devices) for devices in (1, 3, 8, 1000)] == [1, 2, 8, 8]
    assert data_parallel(costs_of(), 8, 1) is None
    assert data_parallel(costs_of(), 100, 4).detail == "4 copies of 1"


@given(st.floats(0, 1), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 60 << 20)), min_size=1, max_size=5))
def test_sums_that_do_not_overlap_are_added(overlap, parts):
    """All of them where the link is the cores that compute; what would have been hidden, by the share that is not."""
    backward, gradients = map(list, zip(*parts, strict=True))
    link = Link(name="a", latency=0.0, bandwidth=1e9)
    hidden, shown, between = (
        exposed_reduction(dataclasses.replace(link, overlap=share), backward, gradients, 4) for share in (1, 0, overlap)
    )
    assert shown == pytest.approx(all_reduce(link, sum(gradients), 4))
    assert between == pytest.approx(overlap * hidden + (1 - overlap) * shown)
