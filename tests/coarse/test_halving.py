"""The halvings from one size to a smaller one."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pararealize.coarse.halving import halvings


@given(st.integers(1, 300), st.integers(1, 300))
def test_halvings_against_brute_force(source, target):
    """As many halvings as fit; exact wherever some choice of paddings is."""
    path = halvings(source, target)
    sizes, ceiling, steps = {source}, source, 0
    while ceiling > target and -(-ceiling // 2) >= target:
        ceiling, steps = -(-ceiling // 2), steps + 1
        sizes = {(n + 2 * p - 3) // 2 + 1 for n in sizes for p in (0, 1) if n + 2 * p >= 3}
    end = source
    for padding in path:
        end = nn.functional.max_pool1d(torch.zeros(1, 1, end), 3, 2, padding).shape[-1]
    assert len(path) == steps
    assert end == target if target in sizes else end == ceiling


def test_a_long_way_takes_no_time():
    """Each step has two paddings: thirty steps were a billion paths, for a size that a file may name."""
    path = halvings(2**31 - 1, 3)
    assert len(path) == 29
    assert set(path) <= {0, 1}
