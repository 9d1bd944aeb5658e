"""Links between two ranks, measured; lines by hand; and one rank alone is told how to start two."""

from __future__ import annotations

import pytest

from pararealize.errors import DistributedError
from pararealize.profiles import measure_link, ranks
from tests.ranks import on_ranks


def test_alone():
    with pytest.raises(DistributedError, match="start with torchrun"):
        measure_link()


def test_a_line_through_two_sizes():
    seconds = {size: 1e-3 + size / 1e9 for size in ranks.SIZES}
    latency, bandwidth = ranks._line(seconds)
    assert latency == pytest.approx(1e-3, rel=1e-3)
    assert bandwidth == pytest.approx(1e9)


@pytest.mark.parametrize("largest", [1.9e-3, 2e-3, 2e-3 + 1e-10, 2.1e-3])
def test_noise_that_hides_the_slope(largest):
    small, middle, large = ranks.SIZES
    latency, bandwidth = ranks._line({small: 1e-3, middle: 2e-3, large: largest})
    assert latency == 1e-3
    assert bandwidth == large / largest


def measured():
    ranks.ROUNDS = 3
    return measure_link(name="gloo")


def test_two_ranks():
    one, other = on_ranks(2, measured)
    assert one == other
    assert one.latency > 0
    assert one.bandwidth > 0
    assert one.reduction.bandwidth > 0
    assert 0 <= one.overlap <= 1
