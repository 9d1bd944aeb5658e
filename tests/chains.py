"""Networks of chains of residual blocks on vectors, in double precision, for what solves for their layers."""

import itertools

import torch
from torch import Tensor, nn

F64 = torch.float64


class Block(nn.Module):
    """u + h·branch(u), or relu of it, on vectors."""

    def __init__(self, width: int, h: float, *, post: bool, norm: bool = False, drop: float = 0.0) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width) if norm else nn.Identity()
        self.drop = nn.Dropout(drop) if drop else nn.Identity()
        self.h, self.post = h, post

    def forward(self, u: Tensor) -> Tensor:
        f = self.h * self.second(self.drop(torch.tanh(self.norm(self.first(u)))))
        return torch.relu(u + f) if self.post else u + f


class Chains(nn.Module):
    """Chains of blocks with linear transitions of changing width between them."""

    def __init__(self, lengths=(6,), widths=(4,), h: float = 0.5, post: bool = False, **kind) -> None:
        super().__init__()
        self.stem = nn.Linear(3, widths[0])
        self.chains = nn.ModuleList(
            nn.ModuleList(Block(width, h, post=post, **kind) for _ in range(length))
            for length, width in zip(lengths, widths, strict=True)
        )
        self.between = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.head = nn.Linear(widths[-1], 2)

    def forward(self, x: Tensor) -> Tensor:
        u = torch.relu(self.stem(x))
        for i, chain in enumerate(self.chains):
            if i:
                u = torch.tanh(self.between[i - 1](u))
            for block in chain:
                u = block(u)
        return self.head(u)


def example(batch: int = 5) -> Tensor:
    return torch.randn(batch, 3, dtype=F64)
