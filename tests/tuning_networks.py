"""Networks to be fine-tuned: of tokens with a mask, converted in two windows; batches of them with padding."""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor, nn

from pararealize import PararealModule, pararealize

__all__ = ["TokenNet", "TokenOutput", "padded_batches", "token_net"]

LENGTH, WIDTH = 5, 6


@dataclasses.dataclass
class TokenOutput:
    """What a token network gives."""

    hidden: Tensor
    pooled: Tensor


class Block(nn.Module):
    """Each token by itself, and the mean of those that count."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 8), nn.Linear(8, WIDTH)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        mean = (x * weights).sum(1, keepdim=True)
        return x + self.down(self.up(self.norm(x) + mean).tanh())


class TokenNet(nn.Module):
    """Blocks over tokens; what it gives is chosen by ``end``: a dataclass, a tuple or a tensor."""

    def __init__(self, end: str = "dataclass") -> None:
        super().__init__()
        self.embed, self.end = nn.Embedding(20, WIDTH), end
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Any:
        weights = (attention_mask / attention_mask.sum(1, keepdim=True)).unsqueeze(2)
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, weights)
        pooled = self.head((x * weights).sum(1))
        return {"dataclass": TokenOutput(x, pooled), "tuple": (x, pooled), "tensor": pooled}[self.end]


def padded_batches(count: int = 5, *, padding: int = 0, samples: int = 4) -> list[dict[str, Tensor]]:
    """Batches of token numbers, the same for every number that pads them."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(count):
        ids = torch.randint(1, 20, (samples, LENGTH), generator=generator)
        lengths = torch.randint(1, LENGTH + 1, (samples, 1), generator=generator)
        mask = (torch.arange(LENGTH) < lengths).long()
        batches.append({"ids": torch.where(mask != 0, ids, padding), "attention_mask": mask})
    return batches


@functools.cache
def _converted(coarse: str, end: str) -> tuple[TokenNet, PararealModule]:
    torch.manual_seed(0)
    model = TokenNet(end).eval()
    net = pararealize(model, 2, windows=2, example_inputs=padded_batches(1)[0], coarse=coarse)
    return model, net.eval()


def token_net(coarse: str = "low-rank:2", end: str = "dataclass") -> tuple[TokenNet, PararealModule]:
    """A model and a fresh copy of its conversion in two windows of two segments."""
    model, net = _converted(coarse, end)
    return model, copy.deepcopy(net)
