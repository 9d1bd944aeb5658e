"""All that a plan of a network is made from."""

from __future__ import annotations

import torch
from torch import nn

from pararealize.analysis.blocks import BlockChain, find_blocks
from pararealize.analysis.cost import Costs, count_costs
from pararealize.analysis.fields.field import Fields, receptive_fields
from pararealize.tracing.front_end import capture


def known(model: nn.Module, x: torch.Tensor) -> tuple[BlockChain, Fields, Costs]:
    """Its blocks, their fields, their costs as counted."""
    chain = find_blocks(capture(model, x, check=False))
    return chain, receptive_fields(chain), count_costs(chain)
