"""A name, a batch size -> a model and a batch for it: ResNet-1001, a ViT and a decoder of 24 layers, and small ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pararealize.models import resnet20, resnet1001

__all__ = ["INFERENCE", "NETWORKS", "SMALL", "make"]

CLASSES = 10


class Block(nn.Module):
    """Attention and a perceptron, each behind a layer norm and added to its input."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class Vision(nn.Module):
    """Patches of 4 × 4 pixels, layers, and the mean of all tokens."""

    def __init__(self, depth: int, width: int, heads: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.layers = nn.Sequential(*(Block(width, heads, causal=False) for _ in range(depth)))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.layers(self.patches(images).flatten(2).transpose(1, 2))
        return self.head(x.mean(1))


class Decoder(nn.Module):
    """Tokens, causal layers, and logits of the last position."""

    def __init__(self, depth: int, width: int, heads: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(CLASSES, width)
        self.layers = nn.Sequential(*(Block(width, heads, causal=True) for _ in range(depth)))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.layers(self.tokens(ids))[:, -1])


def _images(batch: int, pixels: int = 32) -> Tensor:
    return torch.randn(batch, 3, pixels, pixels)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "resnet1001": (resnet1001, _images),
    "vit24": (lambda: Vision(24, 384, 6), _images),
    "decoder24": (lambda: Decoder(24, 768, 12), lambda batch: torch.randint(CLASSES, (batch, 128))),
}
SMALL: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "resnet1001": (resnet20, lambda batch: _images(min(batch, 2) + 1, 8)),
    "vit24": (lambda: Vision(12, 8, 2), lambda batch: _images(batch, 8)),
    "decoder24": (lambda: Decoder(12, 8, 2), lambda batch: torch.randint(CLASSES, (batch, 4))),
}
"""Of the same kinds, for the double of CUDA: what they compute is checked, and no time means anything."""

INFERENCE = ("decoder24",)
"""What is measured without a backward."""


def make(name: str, batch: int, *, small: bool) -> tuple[nn.Module, Tensor, Any]:
    """A model in its mode, a batch, and labels."""
    torch.manual_seed(0)
    build, inputs = (SMALL if small else NETWORKS)[name]
    x = inputs(batch)
    return build().train(name not in INFERENCE), x, torch.randint(CLASSES, (len(x),))
