"""Points and their classes, against the function evaluated on its own."""

import math

import pytest
import torch

from pararealize.data import peaks
from pararealize.data.catalogue import load
from pararealize.errors import DataError


def reference(x: float, y: float) -> float:
    """MATLAB's ``peaks``, as its manual writes it."""
    return (
        3 * (1 - x) ** 2 * math.exp(-(x**2) - (y + 1) ** 2)
        - 10 * (x / 5 - x**3 - y**5) * math.exp(-(x**2) - y**2)
        - 1 / 3 * math.exp(-((x + 1) ** 2) - y**2)
    )


def test_the_range_is_that_of_the_function():
    """No point of a fine grid lies beyond the two numbers, and some come near."""
    side = torch.linspace(-3, 3, 1201, dtype=torch.float64)
    z = peaks.height(side[:, None], side[None, :])
    assert peaks.LOWEST <= z.min() < peaks.LOWEST + 1e-3
    assert peaks.HIGHEST >= z.max() > peaks.HIGHEST - 1e-3


def test_classes_are_levels():
    x, labels = peaks.points(503, seed=1)
    assert x.dtype == torch.float32
    assert sorted(labels.bincount().tolist()) == [100, 100, 101, 101, 101]
    assert x.abs().max() <= 3
    for (first, second), label in zip(x.tolist(), labels.tolist(), strict=True):
        level = (reference(first, second) - peaks.LOWEST) / (peaks.HIGHEST - peaks.LOWEST) * 5
        assert label - 1e-4 <= level <= label + 1 + 1e-4


def test_points_are_spread_over_the_square():
    """The second class is the flat land around the hills; its points reach every quarter of the square."""
    x, labels = peaks.points(4000)
    flat = x[labels == 2]
    quarters = (flat[:, 0] > 0).long() * 2 + (flat[:, 1] > 0).long()
    assert quarters.bincount(minlength=4).min() > 50
    assert len(x.unique(dim=0)) == 4000


def test_seeds_and_parts():
    data = load("peaks", count=(100, 50), data_seed=1)
    assert data.shape == (2,)
    assert (data.train_count, data.test_count, data.classes) == (100, 50, 5)
    assert torch.equal(data.images, load("peaks", count=(100, 50), data_seed=1, seed=7).images)
    assert not torch.equal(data.images, load("peaks", count=(100, 50), data_seed=2).images)
    assert data.labels.bincount().tolist() == [20] * 5
    assert data.test_labels.bincount().tolist() == [10] * 5
    assert len(torch.cat([data.images, data.test_images]).unique(dim=0)) == 150


def test_refusals():
    with pytest.raises(DataError, match="count = 4"):
        peaks.points(4)
    with pytest.raises(DataError, match="points and no images"):
        load("peaks", augment=True)
