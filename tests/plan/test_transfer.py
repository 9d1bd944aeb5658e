"""Seconds of a message."""

import math

import pytest

from pararealize.errors import PlanError
from pararealize.plan.transfer import Transfer


def test_latency_and_bytes():
    assert Transfer(latency=2.0, bandwidth=4.0).seconds(8) == 4.0
    assert Transfer(latency=2.0, bandwidth=math.inf).seconds(8) == 2.0
    assert str(Transfer()) == "latency 2e-05 s, bandwidth 1.2e+10 bytes/s"


@pytest.mark.parametrize(
    "latency, bandwidth", [(-1.0, 1.0), (math.inf, 1.0), (math.nan, 1.0), (0.0, 0.0), (0.0, math.nan)]
)
def test_what_cannot_be(latency, bandwidth):
    with pytest.raises(PlanError, match="they cannot be: pass seconds"):
        Transfer(latency, bandwidth)
