"""Networks of many small steps: fully connected for points of the plane, convolutions for digits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["DigitsNet", "PeaksNet"]


class DenseStep(nn.Module):
    """u + h · tanh(W u + b)."""

    def __init__(self, width: int, h: float) -> None:
        super().__init__()
        self.linear, self.h = nn.Linear(width, width), h

    def forward(self, u: Tensor) -> Tensor:
        return u + self.h * torch.tanh(self.linear(u))


class ConvStep(nn.Module):
    """u + h · relu(norm(conv(u)))."""

    def __init__(self, channels: int, h: float) -> None:
        super().__init__()
        self.conv, self.norm, self.h = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), h

    def forward(self, u: Tensor) -> Tensor:
        return u + self.h * torch.relu(self.norm(self.conv(u)))


class PeaksNet(nn.Module):
    """Two features, N steps of 8 units until time T, five classes."""

    def __init__(self, steps: int = 64, time: float = 5.0, width: int = 8) -> None:
        super().__init__()
        self.opening = nn.Linear(2, width)
        self.steps = nn.Sequential(*(DenseStep(width, time / steps) for _ in range(steps)))
        self.closing = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        closed: Tensor = self.closing(self.steps(torch.tanh(self.opening(x))))
        return closed


class DigitsNet(nn.Module):
    """8×8 digits, N steps of 8 channels of 4×4 with batch norm until time T, ten classes."""

    def __init__(self, steps: int = 32, time: float = 5.0, channels: int = 8) -> None:
        super().__init__()
        self.opening = nn.Conv2d(1, channels, 3, stride=2, padding=1)
        self.steps = nn.Sequential(*(ConvStep(channels, time / steps) for _ in range(steps)))
        self.closing = nn.Linear(channels * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        u = self.steps(torch.relu(self.opening(x)))
        closed: Tensor = self.closing(nn.functional.adaptive_avg_pool2d(u, 2).flatten(1))
        return closed
