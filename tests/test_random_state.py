"""Streams of random numbers: equal for equal keys only."""

import itertools

import torch

from pararealize.random_state import generator


def test_streams_of_different_keys_differ():
    keys = [*itertools.product(range(-2, 5), range(3), range(4)), (12, 3), (1, 23), ("glyphs", 1)]
    drawn = torch.stack([torch.rand(4, generator=generator(*key)) for key in keys])
    assert len(drawn.unique(dim=0)) == len(keys)
    assert torch.equal(drawn[0], torch.rand(4, generator=generator(*keys[0])))
