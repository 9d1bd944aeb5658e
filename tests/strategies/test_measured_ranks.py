"""Hosts of two ranks, measured by a network of next to nothing; and one rank alone is told how to start two."""

from __future__ import annotations

import pytest

from pararealize.errors import DistributedError
from pararealize.profiles import PROFILES, Link
from pararealize.strategies import measure_ranks, measured_ranks
from tests.ranks import on_ranks

LINK = Link(name="gloo", latency=1e-5, bandwidth=1e9)


def test_alone():
    with pytest.raises(DistributedError, match="start with torchrun"):
        measure_ranks(LINK, PROFILES["cpu"])


def measured():
    measured_ranks.ROUNDS, measured_ranks.STEPS = 1, 2
    return measure_ranks(LINK, PROFILES["cpu"])


def test_two_ranks():
    one, other = on_ranks(2, measured)
    assert one == other
    assert (one.name, one.latency, one.bandwidth) == (LINK.name, LINK.latency, LINK.bandwidth)
    assert one.message.latency == one.latency + one.host.message
    host = one.host
    assert min(host.message, host.step, host.microbatch, host.copies) >= 0  # a busy machine may give any of them
    assert max(host.message, host.step, host.microbatch, host.copies) > 0
