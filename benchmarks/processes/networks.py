"""The networks that are timed, by name, with an example of a given batch."""

from __future__ import annotations

import torch
from torch import nn
from torchvision.models import VisionTransformer

from pararealize.models import resnet110, resnet1001

__all__ = ["CLASSES", "build", "example"]

CLASSES = 100
_SIDES = {"vit24": 64}


def build(name: str) -> nn.Module:
    """The network of a name, with weights from seed 0."""
    torch.manual_seed(0)
    if name == "vit24":  # ViT-S's width at twice its depth; 64 patches and a class token
        return VisionTransformer(
            image_size=64, patch_size=8, num_layers=24, num_heads=6, hidden_dim=384, mlp_dim=1536, num_classes=CLASSES
        )
    return {"resnet110": resnet110, "resnet1001": resnet1001}[name](num_classes=CLASSES)


def example(name: str, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels, the same on every process."""
    generator = torch.Generator().manual_seed(batch)
    side = _SIDES.get(name, 32)
    images = torch.randn(batch, 3, side, side, generator=generator)
    return images, torch.randint(CLASSES, (batch,), generator=generator)
