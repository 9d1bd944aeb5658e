"""Layers whose masks a seed brings back are taken; those that draw from elsewhere are refused, with the remedy."""

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pararealize import layer_parallel
from pararealize.errors import MultigridError

SOURCES = {
    "torch": lambda: float(torch.rand(())) < 0.5,
    "python": lambda: random.random() < 0.5,
    "numpy": lambda: np.random.random() < 0.5,
}


class Drop(nn.Module):
    """Drops a whole branch, by a source of random numbers."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source

    def forward(self, x: Tensor) -> Tensor:
        return 0 * x if self.training and SOURCES[self.source]() else x


class Net(nn.Module):
    def __init__(self, source: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(6))
        self.drop = nn.ModuleList(Drop(source) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        for layer, drop in zip(self.layers, self.drop, strict=True):
            x = x + 0.2 * drop(torch.tanh(layer(x)))
        return x


def test_stochastic_depth_from_torch_s_seeds_converges_with_one_mask() -> None:
    net = layer_parallel(Net("torch"), 2, 2, 4, 1, example_inputs=torch.randn(4, 3), leaf_modules=[Drop])
    for _ in range(4):
        net(torch.randn(4, 3)).sum().backward()
        assert net.history[-1].forward[-1] < 1e-5


@pytest.mark.parametrize("source", ["python", "numpy"])
def test_other_sources_are_refused(source: str) -> None:
    state = random.getstate(), np.random.get_state()[1].tolist()
    with pytest.raises(MultigridError, match="draws from Python"):
        layer_parallel(Net(source), 2, 2, example_inputs=torch.randn(4, 3), leaf_modules=[Drop])
    assert random.getstate() == state[0]
    assert np.random.get_state()[1].tolist() == state[1]
