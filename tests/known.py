"""All that a plan of a network is made from."""

from __future__ import annotations

import torch
from torch import nn

from pararealize.blocks import BlockChain, find_blocks
from pararealize.capture import capture
from pararealize.cost import Costs, count_costs
from pararealize.field import Fields, receptive_fields


def known(model: nn.Module, x: torch.Tensor) -> tuple[BlockChain, Fields, Costs]:
    """Its blocks, their fields, their costs as counted."""
    chain = find_blocks(capture(model, x, check=False))
    return chain, receptive_fields(chain), count_costs(chain)
