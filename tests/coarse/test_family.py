"""The family of a network, told by its commonest block."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from pararealize import capture, find_blocks
from pararealize.coarse.family import FAMILIES, family_of
from pararealize.models import resnet20


class Plain(nn.Sequential):
    def __init__(self):
        super().__init__(*(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()) for _ in range(4)))


class Mixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.mix, self.linear = nn.LayerNorm(8), nn.Linear(5, 5), nn.Linear(8, 8)

    def forward(self, x):
        x = x + self.mix(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return x + functional.gelu(self.linear(x))


class Attending(nn.Module):
    def __init__(self, by_hand):
        super().__init__()
        self.by_hand, self.norm, self.qkv = by_hand, nn.LayerNorm(8), nn.Linear(8, 24)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        if self.by_hand:
            return x + (q @ k.transpose(1, 2)).softmax(-1) @ v
        return x + functional.scaled_dot_product_attention(q, k, v)


class Vectors(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return x + functional.relu(self.linear(x))


def four(block, *arguments):
    return nn.Sequential(*(block(*arguments) for _ in range(4)))


IMAGES, TOKENS, VECTORS = (2, 3, 16, 16), (2, 5, 8), (2, 8)
LAYER = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)


@pytest.mark.parametrize(
    "model, shape, family",
    [
        (resnet20(), IMAGES, "residual convolutions"),
        (nn.Sequential(nn.Conv2d(3, 4, 1), Plain()), IMAGES, "plain convolutions"),
        (four(Attending, True), TOKENS, "attention"),
        (four(Attending, False), TOKENS, "attention"),
        (nn.TransformerEncoder(LAYER, 4, enable_nested_tensor=False), TOKENS, "attention"),
        (four(Mixing), TOKENS, "residual mixing"),
        (four(Vectors), VECTORS, None),
    ],
    ids=["resnet", "plain", "by hand", "fused", "torch's layer", "mixer", "vectors"],
)
def test_families(model, shape, family):
    assert family in (*FAMILIES, None)
    assert family_of(find_blocks(capture(model, torch.randn(shape)))) == family


class Convolving(nn.Module):
    def __init__(self, residual):
        super().__init__()
        self.residual, self.weight = residual, nn.Parameter(torch.randn(4, 4, 3, 3) / 6)

    def forward(self, x):
        y = functional.relu(functional.conv2d(x, self.weight, padding=1))
        return x + y if self.residual else y


@pytest.mark.parametrize(
    "block, arguments, shape, family",
    [
        (Attending, (True,), TOKENS, "attention"),
        (Attending, (False,), TOKENS, "attention"),
        (Mixing, (), TOKENS, "residual mixing"),
        (Convolving, (True,), (2, 4, 8, 8), "residual convolutions"),
        (Convolving, (False,), (2, 4, 8, 8), "plain convolutions"),
        (Vectors, (), VECTORS, None),
    ],
)
def test_blocks_that_stay_calls_belong_to_the_families_that_they_are_of(block, arguments, shape, family):
    recorded = capture(four(block, *arguments), torch.randn(shape), leaf_modules=[block])
    assert family_of(find_blocks(recorded)) == family
