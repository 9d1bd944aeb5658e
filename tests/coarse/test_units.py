"""The parts of coarse blocks, each by itself: projections, linear maps, copies of blocks."""

import copy

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import fx, nn
from torch.nn import functional

from pararealize.analysis.space import Space
from pararealize.coarse import units
from pararealize.tracing.module_view import Piece


def space(*shape, channel=0, dtype="float32"):
    return Space(shape=shape, channel=channel, dtype=dtype)


@st.composite
def spaces(draw):
    extent = draw(st.lists(st.integers(1, 9), min_size=0, max_size=3))
    channels = draw(st.integers(1, 5))
    return space(*extent, channels, channel=len(extent)) if draw(st.booleans()) else space(channels, *extent)


@settings(deadline=None, max_examples=150)
@given(spaces(), spaces())
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
    path = units.halvings(size, target)
    assume(path)
    projection = units.Projection(1, 1, [path], dtype=torch.float64)
    nn.init.ones_(projection.conv.weight)
    positions = torch.arange(size, dtype=torch.float64)[None, None]
    centres, kernel = positions, torch.tensor([[[0.0, 1.0, 0.0]]], dtype=torch.float64)
    for padding in path:
        centres = functional.conv1d(centres, kernel, stride=2, padding=padding)
    assert torch.equal(projection(positions), centres)


def test_each_copy_reads_its_own_context():
    """Block 1 reads the segment's second context, block 2 its first and second."""

    class Scale(nn.Module):
        def forward(self, r, *context):
            for i, factor in enumerate(context, 1):
                r = r * factor**i
            return r

    copies = units.Copies([Scale(), Scale()], [(1,), (0, 1)], names=["a", "b"], needs_context=True)
    assert copies(1.0, 2.0, 3.0) == 3.0 * (2.0 * 3.0**2)


def test_redraw_keeps_zeros_and_frozen_weights_become_trainable():
    """Zero-initialised layers (of residual branches, gates) must not wake up, whatever their reset_parameters does."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[2].weight)
    model[2].running_mean.fill_(3)
    model.requires_grad_(False).eval()
    fresh = units.redraw(fx.symbolic_trace(copy.deepcopy(model)))
    weights = dict(fresh.named_parameters())
    assert not torch.equal(weights["0.weight"], model[0].weight)
    assert torch.count_nonzero(weights["1.weight"]) == torch.count_nonzero(weights["2.weight"]) == 0
    assert all(weight.requires_grad for weight in weights.values())
    assert fresh.training
    assert torch.count_nonzero(fresh.get_buffer("2.running_mean")) == 0


def test_a_copy_has_only_the_tensors_that_it_reads():
    """A piece sees all parameters of a container; a copy with unread ones would have parameters without gradients."""

    class Owner(nn.Module):
        def __init__(self):
            super().__init__()
            self.read, self.unread = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(3))
            self.register_buffer("unread_buffer", torch.zeros(3))
            self.linear = nn.Linear(3, 3)

        def forward(self, x):
            return self.linear(x * self.read)

    owner = Owner()
    fresh = units.redraw(copy.deepcopy(Piece(owner, fx.symbolic_trace(owner).graph)))
    assert sorted(fresh.state_dict()) == ["linear.bias", "linear.weight", "read"]
    assert sorted(owner.state_dict()) == ["linear.bias", "linear.weight", "read", "unread", "unread_buffer"]
    assert fresh(torch.ones(2, 3)).shape == (2, 3)
