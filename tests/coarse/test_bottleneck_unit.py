"""Bottlenecks: on every pair of spaces, by their formula, and what they cost."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from pararealize.coarse import bottleneck_unit, coarse_block, kinds, units
from pararealize.coarse.bottleneck_unit import Bottleneck
from tests.spaces import ended_spaces, space


@settings(deadline=None, max_examples=40)
@given(ended_spaces(), ended_spaces(), st.sampled_from([0, 3, 7]))
def test_every_pair_of_spaces(x, y, kernel):
    kernel = kernel if len(y.extent) == 1 else max(kernel, 3)
    module = coarse_block.coarse_units("bottleneck", x, y, 1, kernel)
    r = torch.randn(4, *x.shape, requires_grad=True)
    out = module(r)
    assert out.shape == (4, *y.shape)
    out.square().sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    parameters, cost = coarse_block.coarse_cost("bottleneck", x, y, 1, kernel)
    assert parameters == sum(parameter.numel() for parameter in module.parameters())
    assert cost.flops_backward == 2 * cost.flops_forward


def test_the_formula_on_a_map():
    torch.manual_seed(0)
    unit = Bottleneck(space(8, 6, 5), 0).double()
    r = 3 + 2 * torch.randn(4, 8, 6, 5, dtype=torch.float64)
    normal = (r - r.mean((0, 2, 3), keepdim=True)) / (r.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    f = torch.einsum("hc,bcxy->bhxy", unit.down.weight[:, :, 0, 0], normal.clamp(min=0))
    f = functional.pad(f, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1)
    f = torch.einsum("bhxyij,ghij->bgxy", f, unit.mix.weight)
    f = (f - f.mean((0, 2, 3), keepdim=True)) / (f.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    expected = r + torch.einsum("ch,bhxy->bcxy", unit.up.weight[:, :, 0, 0], f.clamp(min=0))
    torch.testing.assert_close(unit(r), expected)


@pytest.mark.parametrize("kernel", [3, 0])
def test_the_formula_on_tokens(kernel):
    torch.manual_seed(0)
    unit = Bottleneck(space(6, 20, channel=1), kernel).double()
    r = 3 + 2 * torch.randn(4, 6, 20, dtype=torch.float64)
    normal = (r - r.mean(-1, keepdim=True)) / (r.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    f = normal @ unit.down.weight.T
    if kernel:
        f = torch.einsum("bthi,hi->bth", functional.pad(f, (0, 0, 1, 1)).unfold(1, 3, 1), unit.mix.weight[:, 0])
    else:
        f = torch.einsum("st,bth->bsh", unit.mix.weight, f)
    torch.testing.assert_close(unit(r), r + functional.gelu(f) @ unit.up.weight.T)


def test_a_vector_has_nothing_to_mix():
    unit = Bottleneck(space(20), 7)
    assert isinstance(unit.mix, nn.Identity)
    assert sum(parameter.numel() for parameter in unit.parameters()) == 2 * 20 * 4 + 2 * 20 + 4


def test_parameters_and_flops_by_hand():
    """An eighth of 64 channels, a fifth of 320."""
    x, tokens = space(64, 32, 32), space(50, 320, channel=1)
    parameters, cost = coarse_block.coarse_cost("bottleneck", x, x, 1, 0)
    assert parameters == 2 * 64 * 8 + 9 * 8 * 8 + 2 * 64 + 2 * 8
    assert cost.flops_forward == 2 * 32 * 32 * (2 * 64 * 8 + 9 * 8 * 8)
    parameters, cost = coarse_block.coarse_cost("bottleneck", tokens, tokens, 1, 7)
    assert parameters == 2 * 320 * 64 + 7 * 64 + 2 * 320 + 64
    assert cost.flops_forward == 2 * 50 * (2 * 320 * 64 + 7 * 64)
    assert coarse_block.coarse_cost("bottleneck", tokens, tokens, 1, 0)[1].flops_forward == 2 * 50 * 64 * (2 * 320 + 50)


def test_only_a_matrix_asks_for_as_many_tokens():
    x = space(9, 20, channel=1)
    assert Bottleneck(x, 5)(torch.randn(2, 13, 20)).shape == (2, 13, 20)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Bottleneck(x, 0)(torch.randn(2, 13, 20))


def test_a_shape_that_changes_is_mapped_first():
    x, y = space(8, 8, 8), space(16, 4, 4)
    module = bottleneck_unit.bottleneck(x, y, 3)
    r = torch.randn(2, 8, 8, 8)
    assert isinstance(module.linear[0], units.Projection)
    torch.testing.assert_close(module(r), module.bottleneck(module.linear(r)))


def test_where_channels_stand_in_the_middle_the_linear_map_is_left():
    x = space(4, 8, 4, channel=1)
    assert kinds.kind_for("bottleneck", x, x) == (
        "linear",
        '"bottleneck" needs channels at an end and at most three axes, 4×8×4 is not: "linear" instead',
    )
    for y in (space(8), space(5, 8, channel=1), space(8, 4, 4), space(4, 4, 8, channel=2)):
        assert kinds.kind_for("bottleneck", x, y) == ("bottleneck", "")


@pytest.mark.parametrize("shape, channel", [((64, 8, 8), 0), ((32, 64), 1), ((64,), 0)])
def test_at_its_start_the_branch_is_of_the_size_of_one(shape, channel):
    """Whatever the size of the residual, as in the other kinds of units."""
    torch.manual_seed(0)
    unit = Bottleneck(space(*shape, channel=channel), 3)
    r = torch.randn(16, *shape)
    for scale in (0.1, 1.0, 100.0):
        branch = unit(scale * r) - scale * r
        assert 0.2 < branch.detach().var().item() < 3
