"""The networks whose conversion is timed, by name: ``resnet1001``, ``chain-100`` … ``chain-10000``."""

from __future__ import annotations

import torch
from torch import nn

from pararealize.models import resnet1001

__all__ = ["Layer", "build", "layers"]

WIDTH = 4
SIDE = 8


class Layer(nn.Module):
    """x + convolution(ReLU(batch norm(x))): one weighted layer, one residual block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.convolution = nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.convolution(self.relu(self.norm(x)))


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    """The network of a name and an example input."""
    torch.manual_seed(0)
    if name == "resnet1001":
        return resnet1001(), torch.randn(2, 3, 32, 32)
    body = [Layer(WIDTH) for _ in range(layers(name))]
    stem, head = nn.Conv2d(3, WIDTH, 3, padding=1), (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 10))
    return nn.Sequential(stem, *body, *head), torch.randn(2, 3, SIDE, SIDE)


def layers(name: str) -> int:
    """Weighted layers of a network: the stem's and the head's not counted in a chain."""
    return 1001 if name == "resnet1001" else int(name.partition("-")[2])
