"""Blocks are those that a person would name; cuts are where one activation is alive; pieces compose to the whole."""

from __future__ import annotations

import pytest
import torch
import torchvision
from models import (
    MaskedTransformer,
    Perceptron,
    SharedBias,
)
from torch import Tensor, nn

from pararealize.blocks import BlockChain, find_blocks
from pararealize.capture import capture
from pararealize.models import resnet1001


def chain_of(model: nn.Module, x: Tensor) -> BlockChain:
    return find_blocks(capture(model, x))


def on_meta(name: str) -> BlockChain:
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    return find_blocks(capture(model, torch.empty(2, 3, 224, 224, device="meta")))


def kinds(chain: BlockChain) -> dict[str, int]:
    counted: dict[str, int] = {}
    for block in chain.blocks:
        counted[block.kind] = counted.get(block.kind, 0) + 1
    return counted


def test_resnet1001_has_333_units_in_three_stages() -> None:
    with torch.device("meta"):
        model = resnet1001()
    chain = find_blocks(capture(model, torch.empty(2, 3, 32, 32, device="meta")))
    assert kinds(chain) == {"PreActBottleneck": 333}
    assert chain.stages == ((0, 110), (111, 221), (222, 332))
    assert [str(chain.blocks[last].y) for _, last in chain.stages] == ["64×32×32", "128×16×16", "256×8×8"]
    assert len({block.exact_signature for block in chain.blocks}) == 6
    assert chain.stem.parameters == 3 * 16 * 9


@pytest.mark.parametrize(
    "name, expected",
    [
        ("resnet50", {"Bottleneck": 16}),
        ("resnet152", {"Bottleneck": 50}),
        ("vit_b_16", {"EncoderBlock": 12}),
        ("vgg16", {"Conv2d-ReLU": 8, "Conv2d-ReLU-MaxPool2d": 5}),
        ("vgg11_bn", {"Conv2d-BatchNorm2d-ReLU": 3, "Conv2d-BatchNorm2d-ReLU-MaxPool2d": 5}),
        ("swin_t", {"SwinTransformerBlock": 12, "PatchMerging": 3}),
        ("densenet121", {"_DenseBlock": 4, "_Transition": 3}),
        ("mobilenet_v3_large", {"InvertedResidual": 15}),
    ],
)
def test_torchvision_networks(name: str, expected: dict[str, int]) -> None:
    assert kinds(on_meta(name)) == expected


def test_names_are_qualified_and_spaces_know_their_channels() -> None:
    chain = on_meta("swin_t")
    assert [block.name for block in chain.blocks[:4]] == ["features.1.0", "features.1.1", "features.2", "features.3.0"]
    assert (str(chain.blocks[0].x), chain.blocks[0].x.channel) == ("56×56×96", 2)
    assert (str(chain.source), chain.source.channel if chain.source else None) == ("3×224×224", 0)
    tokens = on_meta("vit_b_16").blocks[0].x
    assert (str(tokens), tokens.channels, tokens.extent) == ("197×768", 768, (197,))


def test_a_flat_chain_begins_at_the_raw_input() -> None:
    chain = chain_of(Perceptron(depth=4), torch.randn(2, 8))
    assert [block.name for block in chain.blocks] == ["0", "2", "4", "6", "8"]
    assert chain.stem.nodes == ()
    assert chain.source is not None
    assert chain.source.shape == (8,)


def test_masks_are_context_and_no_interface() -> None:
    ids = torch.randint(0, 11, (2, 5))
    chain = chain_of(MaskedTransformer(), ids)
    assert [block.kind for block in chain.blocks] == ["MaskedLayer"] * 4
    assert {len(block.context) for block in chain.blocks} == {1}
    assert chain.source is None


def test_values_of_parameters_and_conditioning_that_all_blocks_read() -> None:
    model, x = SharedBias(), torch.randn(3, 6)
    chain = chain_of(model, x)
    assert [block.name for block in chain.blocks] == ["layers.0", "layers.1", "layers.2", "layers.3", "last"]
    assert [node.name for node in chain.flow.broadcast] == ["condition"]
    assert [len(block.context) for block in chain.blocks] == [2, 2, 2, 2, 0]
