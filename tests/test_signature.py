"""Signatures are equal for one structure, exact ones for interchangeable blocks."""

from __future__ import annotations

import torch
from models import SmallResNet
from torch import Tensor, nn

from pararealize.blocks import BlockChain, find_blocks
from pararealize.capture import capture


def chain_of(model: nn.Module, x: Tensor) -> BlockChain:
    return find_blocks(capture(model, x))


def test_signatures_ignore_names_and_widths() -> None:
    narrow = chain_of(SmallResNet(width=4), torch.randn(2, 3, 8, 8))
    wide = chain_of(SmallResNet(width=6), torch.randn(2, 3, 8, 8))
    assert [b.signature for b in narrow.blocks] == [b.signature for b in wide.blocks]
    assert not {b.exact_signature for b in narrow.blocks} & {b.exact_signature for b in wide.blocks}
    assert narrow.blocks[1].exact_signature == narrow.blocks[2].exact_signature
    assert narrow.blocks[3].signature != narrow.blocks[4].signature


def test_blocks_that_run_in_another_order_are_one_structure() -> None:
    class Either(nn.Module):
        def __init__(self, flipped: bool) -> None:
            super().__init__()
            self.a, self.b, self.flipped = nn.Linear(4, 4), nn.Linear(4, 4), flipped

        def forward(self, x: Tensor) -> Tensor:
            if self.flipped:
                right = torch.relu(self.b(x))
                return self.a(x) + right
            left = self.a(x)
            return left + torch.relu(self.b(x))

    chain = chain_of(nn.Sequential(Either(False), Either(True), Either(False)), torch.randn(2, 4))
    assert len({block.signature for block in chain.blocks}) == 1
    assert len({block.exact_signature for block in chain.blocks}) == 2
