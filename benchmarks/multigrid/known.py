"""The problem of which residuals, gradient errors and another program's times are known: weights and data by seed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

__all__ = ["BATCH", "KnownNet", "known_batch"]

BATCH, CHANNELS, SIDE, CLASSES = 32, 8, 28, 10


def _seeded(layer: nn.Conv2d | nn.Linear, generator: torch.Generator) -> nn.Module:
    """He's initialisation, zero biases."""
    fan_in = layer.weight[0].numel()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * (2 / fan_in) ** 0.5)
        assert layer.bias is not None
        layer.bias.zero_()
    return layer


class KnownStep(nn.Module):
    """u + h · relu(conv2(relu(conv1(u))))."""

    def __init__(self, h: float, generator: torch.Generator) -> None:
        super().__init__()
        self.conv1 = _seeded(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), generator)
        self.conv2 = _seeded(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), generator)
        self.h = h

    def forward(self, u: Tensor) -> Tensor:
        return u + self.h * torch.relu(self.conv2(torch.relu(self.conv1(u))))


class KnownNet(nn.Module):
    """N steps until time 1, between a convolution and a linear layer."""

    def __init__(self, steps: int = 64) -> None:
        super().__init__()
        self.opening = _seeded(nn.Conv2d(1, CHANNELS, 3, padding=1), torch.Generator().manual_seed(999))
        inner = (KnownStep(1 / steps, torch.Generator().manual_seed(1000 + i)) for i in range(steps))
        self.steps = nn.Sequential(*inner)
        closing = nn.Linear(CHANNELS * SIDE * SIDE, CLASSES)
        self.closing = _seeded(closing, torch.Generator().manual_seed(998))

    def forward(self, x: Tensor) -> Tensor:
        closed: Tensor = self.closing(self.steps(torch.relu(self.opening(x))).flatten(1))
        return closed


def known_batch() -> tuple[Tensor, Tensor]:
    """Images and labels."""
    generator = torch.Generator().manual_seed(5)
    images = [avg_pool2d(torch.randn(BATCH, 1, 32, 32, generator=generator), 5, 1) * 3 for _ in range(8)]
    labels = [torch.randint(0, CLASSES, (BATCH,), generator=generator) for _ in range(8)]
    return images[5], labels[5]
