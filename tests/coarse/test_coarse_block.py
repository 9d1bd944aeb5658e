"""Coarse blocks: the paper's numbers, every kind on every pair of maps, and what they cost."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pararealize.analysis.cost import count_module
from pararealize.coarse import adapter, coarse_block
from pararealize.coarse.kinds import SPACE_KINDS
from pararealize.models import resnet1001
from tests.plans import coarse_row
from tests.spaces import is_strided_and_pointwise, space

IMAGE = space(3, 32, 32)
STAGES = (space(64, 32, 32), space(128, 16, 16), space(256, 8, 8))


def interfaces(n):
    """X_1 … X_N of the paper's cut of ResNet-1001: N/3 segments a stage."""
    return [stage for stage in STAGES for _ in range(n // 3)]


# ------------------------------------------------------------------------------------------------ the paper's numbers


@pytest.mark.parametrize(
    "n, coarse_parameters, total",
    [(3, 5.58, 15.93), (6, 5.72, 16.08), (12, 5.80, 16.15), (18, 8.90, 19.26), (24, 12.00, 22.36)],
)
def test_parameters_of_parareal_resnet_1001(n, coarse_parameters, total):
    X = interfaces(n)
    parts = [coarse_block.coarse_cost("paper", x, y, math.ceil(12 / n))[0] for x, y in pairwise(X)]
    inputs = [adapter.adapter_cost(IMAGE, x, reads="input")[0] for x in X[:-1]]
    with torch.device("meta"):
        original = sum(parameter.numel() for parameter in resnet1001(num_classes=100).parameters())
    assert len(parts) == n - 1
    assert round(original / 1e6, 2) == 10.35
    assert round(sum(parts) / 1e6, 2) == coarse_parameters
    assert round((original + sum(parts) + sum(inputs)) / 1e6, 2) == total


def test_flops_of_a_paper_unit_by_hand():
    """64 → 128 channels, 32² → 16²: two 3×3 convolutions and a projection, two FLOPs a multiply-add."""
    forward = 2 * 16 * 16 * (9 * 64 * 128 + 9 * 128 * 128 + 64 * 128)
    _, cost = coarse_block.coarse_cost("paper", STAGES[0], STAGES[1], 1)
    assert (cost.flops_forward, cost.flops_backward) == (forward, 2 * forward)


def test_flops_of_a_depthwise_unit_by_hand():
    """Backward is twice forward; torch's own counter says 65 times forward for the depthwise part."""
    forward = 2 * 32 * 32 * (64 * 64 + 49 * 64 + 64 * 64)
    parameters, cost = coarse_block.coarse_cost("depthwise", STAGES[0], STAGES[0], 1, 7)
    assert parameters == 2 * 64 * 64 + 49 * 64 + 2 * 2 * 64
    assert (cost.flops_forward, cost.flops_backward) == (forward, 2 * forward)


# ---------------------------------------------------------------------------------------------- every pair of maps


@st.composite
def maps(draw, axes):
    extent = draw(st.tuples(*[st.integers(1, 13)] * axes))
    last = draw(st.booleans()) and axes > 1
    channels = draw(st.integers(1, 5))
    return space(*extent, channels, channel=axes) if last else space(channels, *extent)


@settings(deadline=None, max_examples=50)
@given(st.data(), st.integers(1, 3), st.integers(1, 3), st.sampled_from(SPACE_KINDS))
def test_every_kind_on_every_pair_of_maps(data, axes, count, kind):
    x, y = data.draw(maps(axes)), data.draw(maps(axes))
    module = coarse_block.build_coarse(coarse_row(kind, x, y, count=count, kernel=5), None, first=0, last=0, seed=0)
    assert not any(is_strided_and_pointwise(part) for part in module.modules())
    r = torch.randn(5, *x.shape, requires_grad=True)
    out = module(r)
    assert out.shape == (5, *y.shape)
    out.square().sum().backward()
    assert r.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert module.eval()(r[:1]).shape == (1, *y.shape)
    parameters, cost = coarse_block.coarse_cost(kind, x, y, count, 5)
    assert parameters == sum(parameter.numel() for parameter in module.parameters())
    assert cost.flops_backward == 2 * cost.flops_forward
    with torch.device("meta"):
        on_meta = coarse_block.build_coarse(
            coarse_row(kind, x, y, count=count, kernel=5), None, first=0, last=0, seed=0
        )
    assert all(parameter.is_meta for parameter in on_meta.parameters())


@pytest.mark.parametrize("size, target", [(32, 8), (55, 27), (27, 13), (224, 7), (224, 55), (24, 8), (7, 14)])
def test_resolution_changes(size, target):
    for kind in ("paper", "depthwise", "linear"):
        module = coarse_block.build_coarse(
            coarse_row(kind, space(2, size, size), space(3, target, target)), None, first=0, last=0, seed=0
        )
        assert module(torch.randn(2, 2, size, size)).shape == (2, 3, target, target)


def test_coarse_units_follow_other_image_sizes():
    module = coarse_block.build_coarse(
        coarse_row("paper", STAGES[0], STAGES[1], count=2), None, first=0, last=0, seed=0
    )
    assert module(torch.randn(2, 64, 40, 33)).shape == (2, 128, 20, 17)


def test_a_unit_at_its_start_keeps_the_scale():
    """He's variance: the branch says something of the size of one, whatever the size of the residual."""
    for kind in ("paper", "depthwise"):
        x = space(64, 16, 16)
        module = coarse_block.build_coarse(coarse_row(kind, x, x), None, first=0, last=0, seed=0)
        r = torch.randn(8, 64, 16, 16)
        for scale in (0.1, 1.0, 100.0):
            branch = module(scale * r) - scale * r
            assert branch.var().item() == pytest.approx(1.0, rel=0.35)
        assert (module.unit1.skip(r) == r).all()


def test_exact_is_the_segment_itself():
    assert coarse_block.build_coarse(coarse_row("exact", IMAGE, IMAGE), None, first=0, last=0, seed=0) is None


@pytest.mark.parametrize("y", [space(8, 16, 16), space(8, 4, 4), space(12, 3, 5), space(8, 17, 40)])
@pytest.mark.parametrize("kind", ["paper", "depthwise"])
def test_many_units_are_counted_as_if_all_were_built(kind, y):
    x = space(8, 16, 16)
    for units in (1, 4, 7, 12):
        with torch.device("meta"):
            built = coarse_block.coarse_units(kind, x, y, units, 5)
        expected = sum(parameter.numel() for parameter in built.parameters()), count_module(built, x)
        assert coarse_block.coarse_cost(kind, x, y, units, 5) == expected
