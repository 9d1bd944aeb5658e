"""The parts of coarse blocks, each by itself: projections and linear maps."""

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from pararealize.coarse import units
from pararealize.coarse.halving import halvings
from tests.spaces import ended_spaces


@settings(deadline=None, max_examples=150)
@given(ended_spaces(), ended_spaces())
def test_linear_is_linear_on_every_pair_of_spaces(x, y):
    F = units.linear_map(x, y).double()
    a, b = torch.randn(2, 3, *x.shape, dtype=torch.float64)
    assert F(a).shape == (3, *y.shape)
    torch.testing.assert_close(F(2 * a - b), 2 * F(a) - F(b))
    if x == y:
        assert isinstance(F, nn.Identity)


@given(st.integers(1, 80), st.integers(1, 40))
def test_projection_reads_the_centres_of_the_windows(size, target):
    """A strided 1×1 convolution must land on the pixels on which 3-wide windows of the same paddings are centred."""
    path = halvings(size, target)
    assume(path)
    projection = units.Projection(1, 1, [path], dtype=torch.float64)
    nn.init.ones_(projection.conv.weight)
    positions = torch.arange(size, dtype=torch.float64)[None, None]
    centres, kernel = positions, torch.tensor([[[0.0, 1.0, 0.0]]], dtype=torch.float64)
    for padding in path:
        centres = functional.conv1d(centres, kernel, stride=2, padding=padding)
    assert torch.equal(projection(positions), centres)
