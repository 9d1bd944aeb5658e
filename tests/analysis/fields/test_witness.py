"""What is sure of a block without running it."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from pararealize.analysis.blocks import find_blocks
from pararealize.analysis.fields.witness import is_doubtful, masks_of, mixes_channels, sees_both_sides
from pararealize.models import resnet20
from pararealize.tracing.front_end import capture
from tests.causal import network


def chain_of(model, x):
    return find_blocks(capture(model, x))


def test_a_residual_network_needs_no_trial():
    chain = chain_of(resnet20(), torch.randn(2, 3, 32, 32))
    assert all(sees_both_sides(chain, block) for block in chain.blocks)
    assert mixes_channels(chain, chain.blocks[0])
    assert not any(is_doubtful(chain, node) for block in chain.blocks for node in block.nodes)
    assert not [list(masks_of(chain, block)) for block in chain.blocks if list(masks_of(chain, block))]


@pytest.mark.parametrize("make", ["front", "chomp", "masked", "replicate", "flag", "map"])
def test_no_causal_block_seems_to_see_both_sides(make):
    chain = chain_of(*network(make)[:2])
    assert not any(sees_both_sides(chain, block) for block in chain.blocks)


@pytest.mark.parametrize("make, doubtful", [("front", False), ("chomp", False), ("masked", True), ("replicate", True)])
def test_rules_are_trusted_unless_weights_are_masked_or_borders_read(make, doubtful):
    chain = chain_of(*network(make)[:2])
    assert any(is_doubtful(chain, node) for node in chain.blocks[0].nodes) == doubtful


def test_zeros_in_a_weight_and_values_of_buffers_count():
    model, x, _ = network("front")
    with torch.no_grad():
        model.blocks[1].conv.weight[..., 0] = 0
    chain = chain_of(model, x)
    masks = [list(masks_of(chain, block)) for block in chain.blocks]
    assert [len(each) for each in masks] == [0, 1, 0, 0]
    chain = chain_of(*network("masked")[:2])
    first, second = (list(masks_of(chain, block)) for block in chain.blocks[:2])
    assert first
    assert first == second


class Halved(nn.Module):
    def forward(self, weight):
        return weight * torch.tensor([1.0, 1.0, 0.0])


def test_a_parametrized_weight_is_no_witness():
    layers = [nn.Sequential(nn.Conv1d(4, 4, 3, padding=1), nn.Tanh()) for _ in range(4)]
    for layer in layers:
        parametrize.register_parametrization(layer[0], "weight", Halved())
    chain = chain_of(nn.Sequential(*layers), torch.randn(2, 4, 12))
    assert not any(sees_both_sides(chain, block) for block in chain.blocks)


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.spectral_norm, nn.utils.parametrizations.weight_norm])
def test_a_weight_that_is_computed_is_not_read(norm):
    """To read spectral norm's in train mode is a step of its power method: conversion moved the model's own vectors."""
    torch.manual_seed(0)
    model = nn.Sequential(*(norm(nn.Linear(5, 5)) for _ in range(4)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    chain = chain_of(model, torch.randn(2, 3, 5))
    for block in chain.blocks:
        list(masks_of(chain, block))
        sees_both_sides(chain, block)
        assert all(is_doubtful(chain, node) for node in block.nodes)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "layer, x, expected",
    [
        (nn.Linear(6, 6), torch.randn(2, 4, 6), True),
        (nn.Conv1d(4, 4, 3, padding=1), torch.randn(2, 4, 6), True),
        (nn.Conv1d(4, 4, 3, padding=1, groups=4), torch.randn(2, 4, 6), False),
        (nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), torch.randn(2, 4, 6), True),
    ],
)
def test_what_mixes_channels(layer, x, expected):
    model = nn.Sequential(*(nn.Sequential(nn.Dropout(0.1), layer) for _ in range(2)))
    chain = chain_of(model, x)
    assert mixes_channels(chain, chain.blocks[0]) == expected
