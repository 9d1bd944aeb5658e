"""Residual networks in double precision whose blocks end with a layer that only adds to the stream."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["AddedConvolution", "AddedInPlace", "AddedLinear", "batches_of", "chain_of"]


class AddedLinear(nn.Module):
    """``u = x + mix(x)``, then ``u + dropout(down(tanh(up(u))))``."""

    def __init__(self, width: int, *, bias: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.mix, self.up = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.down, self.drop = nn.Linear(2 * width, width, bias=bias), nn.Dropout(dropout)

    def inner(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the last layer is added to, and what it gives."""
        u = x + 0.4 * self.mix(x)
        return u, self.down(torch.tanh(self.up(u)))

    def forward(self, x: Tensor) -> Tensor:
        u, e = self.inner(x)
        return u + self.drop(e)


class AddedConvolution(nn.Module):
    """``x + second(relu(first(x)))`` of 3×3 convolutions."""

    def __init__(self, width: int, *, bias: bool = True) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.down = nn.Conv2d(width, width, 3, padding=1, bias=bias)

    def inner(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the last layer is added to, and what it gives."""
        return x, self.down(torch.relu(self.first(x)))

    def forward(self, x: Tensor) -> Tensor:
        u, e = self.inner(x)
        return e + u


class AddedInPlace(AddedConvolution):
    """The same with a sum that overwrites what the last layer gave."""

    def forward(self, x: Tensor) -> Tensor:
        u, e = self.inner(x)
        e += u
        return e


def chain_of(block: type[nn.Module], width: int, depth: int, seed: int = 0, **options: bool | float) -> nn.Sequential:
    """So many blocks, in eval mode."""
    torch.manual_seed(seed)
    return nn.Sequential(*(block(width, **options) for _ in range(depth))).double().eval()


def batches_of(block: type[nn.Module], width: int, count: int = 5, seed: int = 1) -> list[Tensor]:
    """Inputs of such a network."""
    shape = (12, width) if block is AddedLinear else (4, width, 5, 5)
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]
