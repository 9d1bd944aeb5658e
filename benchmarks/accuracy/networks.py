"""A family, an image's shape and a number of classes -> a small deep network of that family, with random weights.

Four families, each deep enough for twelve segments and narrow enough to be trained in seconds: a pre-activation ResNet,
a plain network after VGG-16, a vision transformer and an MLP-Mixer; and a deeper ResNet, narrower still, for eighteen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pararealize.models import PreActBasic

__all__ = ["FAMILIES", "Family", "Mixer", "ResNet", "Vgg", "VisionTransformer", "build"]


class ResNet(nn.Module):
    """Three stages of ``units`` pre-activation basic units each, of width, 2·width and 4·width; ``6·units + 2`` layers.

    He, Zhang, Ren and Sun, "Identity mappings in deep residual networks" (ECCV 2016), narrower.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, *, width: int = 8, units: int = 6) -> None:
        super().__init__()
        self.conv = nn.Conv2d(shape[0], width, 3, padding=1, bias=False)
        self.units = nn.Sequential()
        channels = width
        for stage in range(3):
            for i in range(units):
                after = width * 2**stage
                self.units.append(PreActBasic(channels, after, 2 if stage and i == 0 else 1))
                channels = after
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, classes)
        _he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(batch, channels, height, width)`` to logits ``(batch, classes)``."""
        x = functional.relu(self.norm(self.units(self.conv(x))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class Vgg(nn.Module):
    """The thirteen convolutions of VGG-16, each with batch norm and ReLU, and one linear layer.

    Simonyan and Zisserman, "Very deep convolutional networks" (2015), configuration D, narrower; small images allow
    only two of its five poolings, behind layers 4 and 7.
    """

    MULTIPLES = (1, 1, 2, 2, 4, 4, 4, 8, 8, 8, 8, 8, 8)  # of the width: 64, 128, 256, 512, 512
    POOLED = (4, 7)

    def __init__(self, shape: tuple[int, int, int], classes: int, *, width: int = 8) -> None:
        super().__init__()
        self.features = nn.Sequential()
        channels = shape[0]
        for i, multiple in enumerate(self.MULTIPLES, 1):
            layer = nn.Sequential(
                nn.Conv2d(channels, multiple * width, 3, padding=1, bias=False),
                nn.BatchNorm2d(multiple * width),
                nn.ReLU(),
            )
            channels = multiple * width
            if i in self.POOLED:
                layer.append(nn.MaxPool2d(2))
            self.features.append(layer)
        self.head = nn.Linear(channels, classes)
        _he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(batch, channels, height, width)`` to logits ``(batch, classes)``."""
        logits: Tensor = self.head(self.features(x).mean((2, 3)))
        return logits


class Encoder(nn.Module):
    """A pre-norm transformer layer: self-attention, then a multilayer perceptron, each beside a skip connection."""

    def __init__(self, width: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, ratio * width), nn.Linear(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, tokens, width)`` to the same."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        y: Tensor = x + self.down(functional.gelu(self.up(self.norm2(x))))
        return y


class VisionTransformer(nn.Module):
    """A small ViT: two convolutions to 4×4 tokens, learnt positions, ``depth`` pre-norm layers, the mean of the tokens.

    Dosovitskiy et al., "An image is worth 16x16 words" (2021); the mean in place of a class token, and a stem after
    Xiao et al., "Early convolutions help transformers see better" (2021), without which so few images teach it little.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, *, width: int = 32, depth: int = 12) -> None:
        super().__init__()
        patch = shape[1] // 4
        tokens = 4 * (shape[2] // patch)
        self.patches = nn.Sequential(
            nn.Conv2d(shape[0], width // 2, 3, padding=1, bias=False),
            nn.BatchNorm2d(width // 2),
            nn.ReLU(),
            nn.Conv2d(width // 2, width, patch, stride=patch),
        )
        self.positions = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.layers = nn.Sequential(*(Encoder(width, heads=4, ratio=2) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        for layer in self.layers:
            assert isinstance(layer, Encoder)
            for linear in (layer.out, layer.down):  # as deep residual chains start: branches that add up to about one
                nn.init.normal_(linear.weight, std=1 / math.sqrt(linear.in_features * 2 * depth))

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(batch, channels, height, width)`` to logits ``(batch, classes)``."""
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        logits: Tensor = self.head(self.norm(self.layers(x)).mean(1))
        return logits


class MixerLayer(nn.Module):
    """Token mixing, then channel mixing, two multilayer perceptrons, each beside a skip connection."""

    def __init__(self, tokens: int, width: int, ratio: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix_up, self.mix_down = nn.Linear(tokens, tokens), nn.Linear(tokens, tokens)
        self.up, self.down = nn.Linear(width, ratio * width), nn.Linear(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, tokens, width)`` to the same."""
        x = x + self.mix_down(functional.gelu(self.mix_up(self.norm1(x).transpose(1, 2)))).transpose(1, 2)
        y: Tensor = x + self.down(functional.gelu(self.up(self.norm2(x))))
        return y


class Mixer(nn.Module):
    """A small MLP-Mixer: 4×4 patches, ``depth`` layers, the mean over the tokens.

    Tolstikhin et al., "MLP-Mixer: an all-MLP architecture for vision" (2021).
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, *, width: int = 32, depth: int = 12) -> None:
        super().__init__()
        patch = shape[1] // 4
        tokens = 4 * (shape[2] // patch)
        self.patches = nn.Conv2d(shape[0], width, patch, stride=patch)
        self.layers = nn.Sequential(*(MixerLayer(tokens, width, ratio=2) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(batch, channels, height, width)`` to logits ``(batch, classes)``."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        logits: Tensor = self.head(self.norm(self.layers(x)).mean(1))
        return logits


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A family of networks: how one is built, what it is called, and how it is trained.

    ``evidence`` is what :func:`pararealize.coarse.family.family_of` takes its networks for, ``blocks`` how many there
    are, at least.
    """

    title: str
    evidence: str
    make: Callable[..., nn.Module]
    tokens: bool  # of transformers and mixers, which are trained by AdamW
    blocks: int = 12


FAMILIES: dict[str, Family] = {
    "resnet": Family(
        title="pre-activation ResNet-38", evidence="residual convolutions", make=ResNet, tokens=False, blocks=18
    ),
    "resnet56": Family(
        title="pre-activation ResNet-56",
        evidence="residual convolutions",
        make=partial(ResNet, width=4, units=9),
        tokens=False,
        blocks=27,
    ),
    "vgg": Family(title="VGG-16 with batch norm", evidence="plain convolutions", make=Vgg, tokens=False),
    "vit": Family(title="ViT, 12 layers", evidence="attention", make=VisionTransformer, tokens=True),
    "mixer": Family(title="MLP-Mixer, 12 layers", evidence="residual mixing", make=Mixer, tokens=True),
}


def build(family: str, shape: tuple[int, int, int], classes: int, **sizes: Any) -> nn.Module:
    """The network of a family for such images, drawn from torch's global generator."""
    return FAMILIES[family].make(shape, classes, **sizes)


def _he(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
