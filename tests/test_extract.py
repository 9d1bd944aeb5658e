"""Pieces of a graph compose to the whole."""

from __future__ import annotations

import pytest
import torch
from models import MaskedTransformer, Perceptron, SharedBias, SmallResNet
from torch import Tensor, nn

from pararealize.blocks import BlockChain, find_blocks
from pararealize.capture import capture


def chain_of(model: nn.Module, x: Tensor) -> BlockChain:
    return find_blocks(capture(model, x))


@pytest.mark.parametrize(
    "model, x",
    [
        (SmallResNet(), torch.randn(2, 3, 8, 8)),
        (MaskedTransformer(), torch.randint(0, 11, (2, 5))),
        (SharedBias(), torch.randn(2, 6)),
        (Perceptron(), torch.randn(2, 8)),
    ],
)
def test_pieces_compose_to_the_whole(model: nn.Module, x: Tensor) -> None:
    model.eval()
    chain = chain_of(model, x)
    values = dict(zip((n for n in chain.capture.graph.nodes if n.op == "placeholder"), [x], strict=True))
    interpreter = torch.fx.Interpreter(chain.capture.graph_module)
    interpreter.garbage_collect_values = False
    expected = interpreter.run(x)
    values = interpreter.env
    half = len(chain.blocks) // 2
    z = values[chain.blocks[0].input]
    for first, last in ((0, half - 1), (half, len(chain.blocks) - 1)):
        z = chain.module(first, last)(z.clone(), *(values[node] for node in chain.context(first, last)))
    head = chain.piece(chain.head)(z, *(values[node] for node in chain.head.context))
    assert torch.equal(head, expected)
    assert torch.equal(chain.piece(chain.stem)(x), values[chain.blocks[0].input]) or chain.capture.graph_module.training
