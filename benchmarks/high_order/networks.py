"""The paper's network, its schemes and the controls: layers, scheme -> module, and the parameters for its optimiser."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from pararealize import restack

DEPTHS = (10, 18, 30, 58, 86)  # layers: two a block, a convolution before and a linear layer behind


@dataclasses.dataclass(frozen=True, slots=True)
class Scheme:
    """A row of the tables: what :func:`pararealize.restack` is called with, and how many blocks a step needs."""

    name: str
    scheme: str
    stages: int
    h: Fraction = Fraction(1)
    adaptive: bool = False

    @property
    def is_control(self) -> bool:
        """Whether it is Euler's method with a smaller step, which no published table has."""
        return self.h != 1

    def blocks(self, layers: int) -> int:
        """As many whole steps as the depth holds; RK4 has 26 and 82 layers where others have 30 and 86."""
        return (layers - 2) // 2 // self.stages * self.stages


SCHEMES = {
    "euler": Scheme("Euler", "euler", 1),
    "midpoint": Scheme("Midpoint", "midpoint", 2),
    "rk4": Scheme("RK4", "rk4", 4),
    "rk4-last": Scheme("RK4, no blending", "rk4-last", 4),
    "rk8": Scheme("RK8 fixed", "rk8", 14),
    "rk8-adaptive": Scheme("RK8 adaptive", "rk8", 14, adaptive=True),
    "euler-1/2": Scheme("Euler, h = 1/2", "euler", 1, Fraction(1, 2)),
    "euler-1/4": Scheme("Euler, h = 1/4", "euler", 1, Fraction(1, 4)),
    "euler-1/14": Scheme("Euler, h = 1/14", "euler", 1, Fraction(1, 14)),
}


class Block(nn.Module):
    """relu(x + f(x)), f(x) = conv(relu(norm(conv(relu(norm(x))))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(torch.relu(self.norm1(x)))
        y = self.conv2(torch.relu(self.norm2(y)))
        return torch.relu(x + y)


class Network(nn.Module):
    """A convolution, blocks of one width and one size, the mean over the pixels and a linear layer."""

    def __init__(self, blocks: int, width: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.head = nn.Linear(width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def build(scheme: Scheme, layers: int, *, width: int, classes: int, seed: int, pixels: int = 8) -> nn.Module:
    """The network of that depth, restacked; equal seeds give equal weights to networks of as many blocks."""
    torch.manual_seed(seed)
    model = Network(scheme.blocks(layers), width, classes)
    example = torch.randn(2, 3, pixels, pixels)
    return restack(model, scheme.scheme, float(scheme.h), scheme.adaptive, example)


def groups(net: nn.Module, **settings: Any) -> list[dict[str, Any]]:
    """Learnable steps without weight decay."""
    return net.parameter_groups(**settings)  # type: ignore[operator, no-any-return]
