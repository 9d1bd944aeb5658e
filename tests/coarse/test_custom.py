"""Coarse blocks that a callable of the user's builds: checked on fake tensors, refused where they do not fit."""

import copy

import pytest
import torch
from torch import nn

from pararealize.analysis.blocks import find_blocks
from pararealize.coarse import coarse_block, kinds
from pararealize.errors import CoarseError
from pararealize.models import resnet20
from pararealize.tracing.front_end import capture
from tests.plans import coarse_row


@pytest.fixture(scope="module")
def chain():
    return find_blocks(capture(resnet20(), torch.randn(2, 3, 32, 32)))


def build_custom(chain, builder):
    segment = coarse_row("custom", chain.blocks[3].x, chain.blocks[5].y, j=2)
    return coarse_block.build_coarse(segment, chain, first=3, last=5, seed=0, coarse=builder)


def test_custom_builder(chain):
    asked = []

    def builder(segment, x_shape, y_shape):
        asked.append((x_shape, y_shape))
        return nn.Sequential(nn.Conv2d(x_shape[0], y_shape[0], 3, 2, 1), nn.BatchNorm2d(y_shape[0]), nn.Dropout())

    state = torch.get_rng_state()
    module = build_custom(chain, builder)
    assert asked == [((16, 32, 32), (32, 16, 16))]
    assert torch.equal(torch.get_rng_state(), state)
    assert module[1].num_batches_tracked == 0  # the check ran on a copy
    assert bool((module[1].running_var == 1).all())
    assert all(type(tensor) in (nn.Parameter, torch.Tensor) for tensor in module.state_dict(keep_vars=True).values())
    assert torch.equal(module[0].weight, build_custom(chain, builder)[0].weight)
    assert kinds.kind_for(builder, None, None) == ("custom", "")


def test_custom_builder_may_give_the_segment_itself_or_a_copy(chain):
    assert isinstance(build_custom(chain, lambda segment, x, y: segment), nn.Module)
    assert isinstance(build_custom(chain, lambda segment, x, y: copy.deepcopy(segment)), nn.Module)


def wrong_shape(segment, x_shape, y_shape):
    return nn.Conv2d(x_shape[0], 7, 1)


def does_not_run(segment, x_shape, y_shape):
    return nn.Linear(999, 3)


def no_module(segment, x_shape, y_shape):
    return "conv"


def gives_a_pair(segment, x_shape, y_shape):
    class Pair(nn.Module):
        def forward(self, r):
            return r, r

    return Pair()


@pytest.mark.parametrize(
    "builder, message",
    [
        (
            wrong_shape,
            (
                r"F\^2 of wrong_shape maps \(batch, 16, 32, 32\) to \(batch, 7, 32, 32\), but X_3 is 32×16×16; "
                r"it has to return a module \(batch, 16, 32, 32\) -> \(batch, 32, 16, 16\)"
            ),
        ),
        (does_not_run, r"F\^2 of does_not_run does not run: .*it has to return a module \(batch, 16, 32, 32\)"),
        (no_module, r"no_module gave str for F\^2; it has to return an nn.Module"),
        (gives_a_pair, r"gives_a_pair maps .* to tuple, but X_3"),
    ],
)
def test_custom_builders_that_do_not_fit(chain, builder, message):
    with pytest.raises(CoarseError, match=message):
        build_custom(chain, builder)
