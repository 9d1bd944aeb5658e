"""Routes between any two spaces: one step with parameters, steps that meet, averages where it must be linear."""

import itertools

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from pararealize.coarse.resampling import Move, Resample, route
from tests.spaces import space, spaces


@settings(deadline=None, max_examples=150)
@given(spaces(), spaces(), st.booleans())
@example(space(), space(3, 4, 4), False)
@example(space(2, 3, 4, 5, 6), space(3, 4, 4), True)
def test_every_route_has_one_step_with_parameters_and_names_each_once(source, target, linear):
    steps = route(source, target, linear=linear)
    made = {step.name: step.make() for step in steps}
    assert len(made) == len(steps)
    assert all(step.text for step in steps)
    assert [name for name, module in made.items() if any(True for _ in module.parameters())] == ["project"]
    x = torch.ones(2, *source.shape, dtype=target.torch_dtype)
    assert nn.Sequential(*made.values())(x).shape == (2, *target.shape)
    if linear:
        assert not any(isinstance(module, nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d) for module in made.values())
        assert made["project"].bias is None


def test_the_projection_stands_where_the_map_is_smallest():
    """Its cost is that of a 1×1 convolution on the smaller of the two maps."""
    small, large = space(8, 7, 7), space(4, 28, 28)
    assert [step.name for step in route(small, large)] == ["project", "resample"]
    assert [step.name for step in route(large, small)] == ["pool", "pool2", "project"]
    tokens, image = space(49, 8, channel=1), space(4, 28, 28)
    assert next(step.name for step in route(tokens, image)) == "project"
    assert route(image, tokens)[-1].name == "project"


def test_a_vector_becomes_a_map_of_no_more_numbers_and_back():
    texts = [step.text for step in route(space(64), space(16, 8, 8))]
    assert texts == ["linear 64→64", "to 16×2×2", "repeat 2×2 to 8×8"]
    assert [step.text for step in route(space(16, 8, 8), space(64))] == ["average to 2×2", "flatten", "linear 64→64"]
    assert [step.text for step in route(space(16, 8, 8), space(15))] == ["average to 1×1", "flatten", "linear 16→15"]
    assert [step.text for step in route(space(4, 8, 8), space(256))] == ["flatten", "linear 256→256"]


def test_maps_of_four_axes_are_folded_into_three():
    texts = [step.text for step in route(space(2, 4, 4, 8, 8), space(3, 2, 2, 8, 8))]
    assert texts[0] == "fold to 16×8×8"
    assert texts[-1] == "unfold to 2×2×8×8"


def test_an_image_becomes_tokens_over_a_grid_of_that_many_points():
    texts = [step.text for step in route(space(3, 224, 224), space(197, 768, channel=1))]
    assert texts == [*["max_pool 3×3/2"] * 4, "flatten", "repeat 196 to 197", "channels last", "linear 3→768"]


@given(st.data(), st.integers(1, 3))
def test_resampling_is_adaptive_pooling_in_a_ratio(data, axes):
    """At the planned size to the target itself; elsewhere to the nearest size in the same ratio."""
    sizes = st.lists(st.integers(1, 9), min_size=axes, max_size=axes)
    source, target, factor = data.draw(sizes), data.draw(sizes), data.draw(st.integers(1, 3))
    module = Resample(tuple(source), tuple(target))
    pool = [F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d][axes - 1]
    x = torch.randn(2, 2, *(factor * size for size in source))
    assert torch.equal(module(x), pool(x, [factor * size for size in target]))


def test_resampling_rounds_to_the_nearest_size():
    for source, target, size in itertools.product(range(1, 8), range(1, 8), range(3, 30)):
        if size * target >= source:
            resampled = Resample((source,), (target,))(torch.zeros(1, 1, size)).shape[2]
            assert abs(resampled - size * target / source) <= 0.5
    assert str(Resample((38, 38), (35, 35))) == "Resample(38×38 → 35×35)"


@pytest.mark.parametrize("source, target", list(itertools.permutations(range(3), 2)))
def test_channels_move_and_the_other_axes_keep_their_order(source, target):
    x = torch.randn(2, 3, 4, 5)
    order = [axis for axis in range(3) if axis != source]
    order.insert(target, source)
    assert torch.equal(Move(source, target)(x), x.permute(0, *(axis + 1 for axis in order)))
    assert str(Move(source, target)) == f"Move(axis {source} → {target})"
