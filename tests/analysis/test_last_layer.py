"""The layer at a block's end: found where its output only adds to the stream, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pararealize import capture, find_blocks
from pararealize.analysis.last_layer import layers_at_ends
from pararealize.models import resnet20
from tests.added_branches import AddedConvolution, AddedLinear, chain_of
from tests.models import SmallResNet


class Ending(nn.Module):
    """A block of two linear layers that ends in one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.up, self.down = way, nn.Linear(6, 8), nn.Linear(8, 6)
        self.drop, self.one, self.norm = nn.Dropout(0.1), nn.Linear(8, 1), nn.LayerNorm(6)
        if way == "hooked":
            self.down.register_forward_hook(lambda *_: None)
        if way == "parametrised":
            nn.utils.parametrizations.weight_norm(self.down)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(self.up(x))
        e = self.down(z)
        if self.way == "dropped":
            return x + self.drop(e)
        if self.way == "the other way round":
            return e.add(x)
        if self.way == "scaled":
            return x + 0.5 * e
        if self.way == "behind a ReLU":
            return torch.relu(x + e)
        if self.way == "behind a norm":
            return self.norm(x + e)
        if self.way == "read twice":
            return x + e * torch.sigmoid(e)
        if self.way == "called twice":
            return x + self.down(torch.tanh(self.up(x + e)))
        if self.way == "one channel":
            return x + e.detach() * 0 + self.one(z)
        if self.way == "weight read twice":
            return x + 0.1 * torch.nn.functional.linear(z, self.down.weight) + e
        if self.way == "one for all tokens":
            return x + self.down(z.mean(1, keepdim=True))
        if self.way == "no sum":
            return e
        return x + e


def found(model: nn.Module, x: Tensor, block: int = 1) -> str:
    chain = find_blocks(capture(model.eval(), x))
    return layers_at_ends(chain)[block]


@pytest.mark.parametrize(
    "way, layer",
    [
        ("plain", "1.down"),
        ("dropped", "1.down"),
        ("the other way round", "1.down"),
        *((way, "") for way in ("scaled", "behind a ReLU", "behind a norm", "read twice", "called twice")),
        *((way, "") for way in ("one channel", "no sum", "hooked", "parametrised", "weight read twice")),
    ],
)
def test_what_a_block_ends_with(way: str, layer: str) -> None:
    assert found(nn.Sequential(*(Ending(way) for _ in range(3))), torch.randn(4, 6)) == layer


def test_one_value_for_all_tokens_is_no_term_of_their_shape() -> None:
    model = nn.Sequential(*(Ending("one for all tokens") for _ in range(3)))
    assert found(model, torch.randn(4, 5, 6)) == ""


def test_weights_that_others_read_too() -> None:
    blocks = [Ending("plain") for _ in range(3)]
    blocks[2].down.weight = blocks[1].down.weight
    assert found(nn.Sequential(*blocks), torch.randn(4, 6)) == ""
    assert found(nn.Sequential(*blocks), torch.randn(4, 6), 0) == "0.down"


def test_convolutions() -> None:
    assert found(chain_of(AddedConvolution, 4, 3).float(), torch.randn(2, 4, 6, 6)) == "1.down"
    grouped = chain_of(AddedConvolution, 4, 3).float()
    for block in grouped:
        block.down = nn.Conv2d(4, 4, 3, padding=1, groups=2)
    assert found(grouped, torch.randn(2, 4, 6, 6)) == ""
    images = torch.randn(2, 3, 32, 32)
    assert found(resnet20(), images) == "stage1.1.conv2"
    assert found(SmallResNet(depth=4), torch.randn(2, 3, 8, 8)) == ""  # a norm behind it, and a ReLU behind the sum


def test_tokens() -> None:
    assert found(chain_of(AddedLinear, 6, 3).float(), torch.randn(2, 7, 6)) == "1.down"


def test_dropout_with_a_hook_is_more_than_dropout() -> None:
    model, x = nn.Sequential(*[Ending("dropped") for _ in range(3)]), torch.randn(2, 5, 6)
    assert found(model, x) == "1.down"
    model[1].drop.register_forward_hook(lambda module, args, output: output * 2)
    assert found(model, x) == ""
