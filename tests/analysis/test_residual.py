"""Residual blocks: what is found to be x + f(x), f itself, and the reason where there is none."""

import dataclasses

import pytest
import torch
import torchvision
from torch import Tensor, nn

from pararealize import capture, find_blocks
from pararealize.analysis.blocks import BlockChain
from pararealize.analysis.flow import flow_of
from pararealize.analysis.residual import NotResidual, chains_of, find_residuals, residual_of
from pararealize.analysis.residual import Residual as ResidualBlock
from pararealize.models import resnet20
from pararealize.tracing.module_view import Piece
from tests.models import MaskedTransformer, Residual, SmallResNet, UNet

IMAGE = torch.randn(2, 3, 32, 32)


def tiny_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(32, 8, 3, 2, 32, 64)


def chain_of(model: nn.Module, x: Tensor = IMAGE) -> BlockChain:
    return find_blocks(capture(model, x))


def found(model: nn.Module, x: Tensor = IMAGE):
    return find_residuals(flow_of(capture(model, x)))


def test_resnets() -> None:
    result = found(torchvision.models.resnet18())
    assert [residual.name for residual in result.blocks] == ["layer1.0", "layer1.1", "layer2.1", "layer3.1", "layer4.1"]
    assert all(residual.post is not None for residual in result.blocks)
    assert [str(refusal) for refusal in result.refusals] == [
        f"layer{i}.0: its shortcut is not the identity but layer{i}.0.downsample.1" for i in (2, 3, 4)
    ]
    assert all(residual.post is None for residual in found(resnet20()).blocks)


def test_both_residuals_of_a_transformers_layer() -> None:
    result = found(tiny_vit())
    names = [f"encoder.layers.encoder_layer_{i}{second}" for i in range(3) for second in ("", "#2")]
    assert [residual.name for residual in result.blocks] == names
    assert [len(chain) for chain in chains_of(result.blocks)] == [6]


def test_formulas_of_activations_are_no_blocks() -> None:
    """GPT-2's GELU is x + 0.04·x³ within an MLP: no block, and no end of the chain of attention and MLP."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.up, self.down = nn.Linear(4, 4), nn.Linear(4, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.a(x)
            h = self.up(x)
            return x + self.down(torch.tanh(h + 0.04 * h**3))

    result = found(nn.Sequential(nn.Linear(4, 4), Layer(), Layer()), torch.randn(3, 4))
    assert [len(run) for run in chains_of(result.blocks)] == [4]
    assert {refusal.reason for refusal in result.refusals} == {"f has no parameters"}


def test_masks_are_context() -> None:
    ids = torch.randint(0, 11, (2, 7))
    result = found(MaskedTransformer(), ids)
    assert [residual.name for residual in result.blocks] == [f"layers.{i}" for i in range(4)]
    assert "eq" in [node.name for node in result.blocks[0].context]


@pytest.mark.parametrize("model", [SmallResNet(), resnet20(), tiny_vit()], ids=lambda model: type(model).__name__)
def test_f_of_a_block(model: nn.Module) -> None:
    """x + f(x) with the graph of f is what the block's own module gives, in eval mode and in train mode."""
    chain = chain_of(model)
    checked = 0
    for i, block in enumerate(chain.blocks):
        residual = residual_of(chain, block)
        if isinstance(residual, NotResidual):
            continue
        checked += 1
        for training in (True, False):
            model.train(training)
            x = torch.randn(3, *block.x.shape)
            f = Piece(model, residual.graph())
            sums = x + f(x)
            y = torch.relu(sums) if residual.post is not None else sums
            torch.testing.assert_close(y, chain.module(i, i)(x.clone()))
    assert checked >= 3


def test_why_a_block_is_none() -> None:
    chain = chain_of(SmallResNet())
    reasons = {
        block.name: made.reason for block in chain.blocks if isinstance(made := residual_of(chain, block), NotResidual)
    }
    assert reasons == {"layer2.0": "its shortcut is not the identity but layer2.0.skip"}
    flat = chain_of(nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(5))), torch.randn(2, 4))
    assert residual_of(flat, flat.blocks[1]).reason == "it has no addition of two activations"


def test_two_post_activation_blocks_in_one_are_no_residual() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *(Residual(4) for _ in range(4)))
    chain = chain_of(model)
    first, second = chain.blocks[-2:]
    both = dataclasses.replace(first, name="both", nodes=(*first.nodes, *second.nodes), output=second.output)
    reason = "it is 2 residual blocks with a ReLU between them, which are no one x + f(x)"
    assert residual_of(chain, both) == NotResidual(name="both", reason=reason)


def test_blocks_within_blocks_make_chains_of_their_own() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            y = x
            for layer in self.inner:
                y = y + torch.tanh(layer(y))
            return x + y.tanh()

    result = found(nn.Sequential(nn.Linear(4, 4), Outer(), Outer()), torch.randn(3, 4))
    assert len(result.blocks) == 8
    assert sorted(len(run) for run in chains_of(result.blocks)) == [2, 3, 3]


def test_a_unet_has_none() -> None:
    assert not found(UNet(), torch.randn(2, 3, 8, 8)).blocks


def test_a_value_that_leaves_between_blocks_ends_the_chain() -> None:
    class Tapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.layers = nn.Linear(4, 4), nn.ModuleList(nn.Linear(4, 4) for _ in range(4))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.stem(x)
            for i, layer in enumerate(self.layers):
                x = x + torch.tanh(layer(x))
                if i == 1:
                    tap = x
            return x, tap

    result = found(Tapped(), torch.randn(3, 4))
    assert [len(run) for run in chains_of(result.blocks)] == [2, 2]


def test_a_relu_behind_the_last_block_of_a_chain_without_is_not_part_of_it() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.layers = nn.Linear(4, 4), nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for layer in self.layers:
                x = x + torch.tanh(layer(x))
            return torch.relu(x)

    (run,) = chains_of(found(Flat(), torch.randn(3, 4)).blocks)
    assert [residual.post for residual in run] == [None] * 3
    assert isinstance(run[0], ResidualBlock)
