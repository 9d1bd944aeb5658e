"""What blocks read along each axis, by rule, by witness or by trial, and what runs of blocks read."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pararealize.analysis.blocks import find_blocks
from pararealize.analysis.causality import Causality
from pararealize.analysis.fields.dependency import Dependency, dependencies
from pararealize.tracing.front_end import capture
from tests.causal import MAKES, Network, network

PAST, OWN = Causality(side="past"), Causality(side="own")
reaches = st.builds(Dependency, st.integers(1, 3), st.integers(-3, 5), st.integers(-3, 5))


@given(reaches, reaches, st.integers(0, 9))
def test_what_two_in_a_row_read(first, later, o):
    """Against the sets of positions: every position that is read of what every read position reads."""

    def reads(reach, o):
        return range(reach.stride * o - reach.behind, reach.stride * o + reach.ahead + 1)

    both = first.then(later)
    positions = {i for middle in reads(later, o) for i in reads(first, middle)}
    if len(reads(first, 0)) and len(reads(later, 0)):
        assert (min(positions), max(positions)) == (reads(both, o)[0], reads(both, o)[-1])


@pytest.mark.parametrize(
    "reach, sizes, expected",
    [
        (Dependency(1, 4, 0), (9, 9), PAST),
        (Dependency(1, math.inf, 0), (9, 9), PAST),
        (Dependency(1, math.inf, math.inf), (9, 9), None),
        (Dependency(1, 2, 2), (9, 9), None),
        (Dependency(1, 8, 2), (9, 9), PAST),  # a look-ahead
        (Dependency(1, 0, 0), (9, 9), OWN),
        (Dependency(1, 4, -1), (9, 9), Causality(side="past", offset=-1)),
        (Dependency(1, 1, -1), (9, 9), Causality(side="own", offset=-1)),
        (Dependency(1, 0, 3), (9, 9), Causality(side="future")),
        (Dependency(1, -1, 3), (9, 9), Causality(side="future", offset=1)),
        (Dependency(1, 0, 3), (9, 6), Causality(side="past", offset=3)),  # without padding
        (Dependency(2, 3, 0), (9, 5), Causality(side="past", stride=2)),
        (Dependency(2, 2, 1), (8, 4), Causality(side="past", stride=2, frame=True)),
        (Dependency(4, 0, 3), (8, 2), Causality(side="own", stride=4, frame=True)),
        (Dependency(2, 1, 2), (9, 5), None),
        (Dependency(Fraction(1, 2), Fraction(1, 2), 0), (4, 8), OWN),
        (Dependency(1, 3, 0), (9, 5), Causality(side="unclear")),  # the rest is dropped
    ],
)
def test_sides(reach, sizes, expected):
    assert reach.causality(*sizes, alone=True) == expected


def test_maps_without_padding_are_neighbourhoods():
    assert Dependency(1, 0, 2).causality(9, 7, alone=False) is None


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("both", [False, True])
def test_networks_of_every_make(make, both):
    torch.manual_seed(0)
    model, x, _ = network(make, both=both)
    sides = dependencies(find_blocks(capture(model.eval(), x))).of(0, 2)
    assert (sides[:1] == (PAST,)) != both
    assert sides[1:] == ((None,) if make == "map" and not both else ())


def test_masks_of_equal_blocks_may_differ():
    """Blocks that are interchangeable but for the values of a buffer are looked at one by one."""
    torch.manual_seed(0)
    model, x, _ = network("masked")
    model.blocks[2].mask = model.blocks[2].mask.flip(0)
    model.blocks[2].dilation, model.blocks[2].span = model.blocks[0].dilation, model.blocks[0].span
    chain = find_blocks(capture(model.eval(), x))
    sides = [dependencies(chain).of(i, i + 1) for i in range(4)]
    assert sides == [(PAST,), (PAST,), (Causality(side="future"),), (PAST,)]


def test_what_mixes_nothing_is_bound_to_its_own_where_nothing_is_mixed():
    def blocks(kernels):
        return [nn.Sequential(nn.Conv1d(4, 4, k, padding=k // 2), nn.Tanh()) for k in kernels]

    def sides(kernels):
        model = Network(nn.Conv1d(4, 4, 1), blocks(kernels), nn.Conv1d(4, 4, 1))
        return dependencies(find_blocks(capture(model, torch.randn(2, 4, 12)))).of(0, 2)

    assert sides([1, 1, 1, 1]) == (OWN,)
    assert sides([1, 1, 3, 1]) == ()


def test_an_axis_that_is_taken_for_channels_and_read_in_order_is_not_lost():
    """(batch, channels, time) whose first operation is a matrix over time: the channels seem to stand last."""

    class OverTime(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(12, 12))
            self.register_buffer("mask", torch.ones(12, 12).tril())

        def forward(self, x):
            return x + torch.tanh(nn.functional.linear(x, self.weight * self.mask))

    model = nn.Sequential(*[OverTime() for _ in range(4)])
    sides = dependencies(find_blocks(capture(model, torch.randn(2, 4, 12)))).of(0, 2)
    assert sides == (Causality(side="unclear"),)
