"""Networks of every family, small, with plans of every kind of coarse block, and what the original computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pararealize import Plan, pararealize

__all__ = ["Planned", "images", "planned"]


class Planned(NamedTuple):
    """A network, an input of it, the plan of its conversion, and the output that all conversions lead to."""

    name: str
    model: nn.Module
    x: Tensor
    plan: Plan
    output: Tensor


class Residual(nn.Module):
    """x + f(x), f with two convolutions; stride 2 and other channels where the shape changes."""

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.skip = nn.Identity() if before == after else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.skip(x) + self.conv2(torch.relu(self.norm(self.conv1(x)))))


class Attention(nn.Module):
    """A pre-norm transformer block, causal if asked for."""

    def __init__(self, width: int, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.norm1, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2, self.mlp = nn.LayerNorm(width), nn.Sequential(nn.Linear(width, 16), nn.GELU(), nn.Linear(16, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=self.causal))
        return x + self.mlp(self.norm2(x))


class Pad(nn.Module):
    """x + tanh(conv(x)) along time, padded in front."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.conv(F.pad(x, (2, 0))))


class Pooled(nn.Module):
    """Means over all axes behind the channels, then one linear layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(2).mean(-1))


def images() -> tuple[nn.Module, Tensor]:
    blocks = [Residual(4, 4), Residual(4, 4), Residual(4, 8, 2), Residual(8, 8), Residual(8, 8)]
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *blocks, Pooled(8)), torch.randn(2, 3, 8, 8)


def _vectors() -> tuple[nn.Module, Tensor]:
    blocks = [nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(5)]
    return nn.Sequential(nn.Linear(4, 6), *blocks, nn.Linear(6, 3)), torch.randn(2, 4)


def _tokens(causal: bool) -> Callable[[], tuple[nn.Module, Tensor]]:
    blocks = [Attention(8, causal=causal) for _ in range(4)]
    return lambda: (nn.Sequential(nn.Linear(5, 8), *blocks, nn.Linear(8, 3)), torch.randn(2, 6, 5))


def _series() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Conv1d(2, 6, 1), *(Pad(6) for _ in range(4)), nn.Conv1d(6, 3, 1)), torch.randn(2, 2, 9)


_CASES: tuple[tuple[str, Callable[[], tuple[nn.Module, Tensor]], dict[str, Any]], ...] = (
    ("images, paper", images, {"n": 3, "coarse": "paper"}),
    ("images, depthwise, from the stem", images, {"n": 4, "coarse": "depthwise", "source": "stem"}),
    ("images, linear, cuts by name", images, {"n": 2, "coarse": "linear", "cuts": ["3"]}),
    (
        "images, bottleneck, a sequential block, windows",
        images,
        {"n": 2, "coarse": "bottleneck", "sequential": 1, "windows": 2},
    ),
    ("vectors, block", _vectors, {"n": 3, "coarse": "block"}),
    ("vectors, one segment", _vectors, {"n": 1}),
    ("tokens, bottleneck", _tokens(False), {"n": 3, "coarse": "bottleneck"}),
    ("causal tokens, exact", _tokens(True), {"n": 2, "coarse": "exact"}),
    ("causal tokens, bottleneck", _tokens(True), {"n": 3, "coarse": "bottleneck"}),
    ("causal series, depthwise", _series, {"n": 3, "coarse": "depthwise"}),
)


def planned(count: int | None = None) -> list[Planned]:
    """All networks, or the first few; the same in every process."""
    rows = []
    for name, make, options in _CASES[:count]:
        torch.manual_seed(0)
        model, x = make()
        model.eval()
        plan = pararealize(model, example_inputs=x, **options).plan
        with torch.no_grad():
            rows.append(Planned(name, model, x, plan, model(x)))
    return rows
