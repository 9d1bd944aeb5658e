"""A tabular network whose forward takes one dict of tensors, and its batches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Tabular", "table"]


class Tabular(nn.Module):
    """An embedding of every category and a linear map of the numbers, added up, and residual blocks behind them."""

    def __init__(self, depth: int = 6, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.ModuleList(nn.Embedding(5, width) for _ in range(2))
        self.numbers, self.last = nn.Linear(3, width), nn.Linear(width, 2)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.Tanh()) for _ in range(depth)
        )

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        x = self.numbers(batch["num"])
        for column, embed in zip(batch["cat"].unbind(1), self.embed, strict=True):
            x = x + embed(column)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x)


def table(rows: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """A batch of so many rows."""
    return {"cat": torch.randint(0, 5, (rows, 2)), "num": torch.randn(rows, 3, dtype=dtype)}
