"""The networks that are timed, by name, with an example of a given batch."""

from __future__ import annotations

import torch
from torch import nn
from torchvision.models import VisionTransformer

from pararealize.models import PreActBasic, resnet110, resnet1001

__all__ = ["CLASSES", "WIDTH", "Chain", "build", "example"]

CLASSES = 100
WIDTH = 16  # of the chain
_SIDES = {"vit24": 64, "chain64": 8}


def build(name: str) -> nn.Module:
    """The network of a name, with weights from seed 0."""
    torch.manual_seed(0)
    if name == "vit24":  # ViT-S's width at twice its depth; 64 patches and a class token
        return VisionTransformer(
            image_size=64, patch_size=8, num_layers=24, num_heads=6, hidden_dim=384, mlp_dim=1536, num_classes=CLASSES
        )
    if name == "chain64":
        return Chain(num_classes=CLASSES)
    return {"resnet110": resnet110, "resnet1001": resnet1001}[name](num_classes=CLASSES)


class Chain(nn.Module):
    """Pre-activation units of one width and one size, such as every method of the family takes: 130 layers."""

    def __init__(self, units: int = 64, width: int = WIDTH, num_classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.units = nn.Sequential(*(PreActBasic(width, width) for _ in range(units)))
        self.norm, self.fc = nn.BatchNorm2d(width), nn.Linear(width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.units(self.conv(x))))
        logits: torch.Tensor = self.fc(x.mean((2, 3)))
        return logits


def example(name: str, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels, the same on every process."""
    generator = torch.Generator().manual_seed(batch)
    side = _SIDES.get(name, 32)
    images = torch.randn(batch, 3, side, side, generator=generator)
    return images, torch.randint(CLASSES, (batch,), generator=generator)
