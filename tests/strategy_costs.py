"""A small network of residual blocks with what prices it, for tests of strategies: recorded once."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import nn

from pararealize.analysis.blocks import find_blocks
from pararealize.analysis.fields.field import receptive_fields
from pararealize.profiles import PROFILES, DeviceProfile, Link, Roofline
from pararealize.strategies.network_costs import NetworkCosts
from pararealize.tracing.front_end import capture

FREE = Link(name="free", latency=0.0, bandwidth=1e30)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layer(x).relu()


def network(blocks: int = 8, width: int = 16) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), *(Block(width) for _ in range(blocks)), nn.Linear(width, 3))


@functools.cache
def _roofline() -> Roofline:
    with torch.device("meta"):
        chain = find_blocks(capture(network(), torch.empty(2, 4, device="meta"), check=False))
    roofline = Roofline(chain, PROFILES["cpu"])
    assert roofline.operations
    assert roofline.counts
    return roofline


def costs_of(link: Link = FREE, profile: DeviceProfile | None = None, **changes: object) -> NetworkCosts:
    """The network on a processor, with a link; nothing is counted again."""
    shown = dataclasses.replace(profile or PROFILES["cpu"], **changes)
    once = _roofline()
    roofline = dataclasses.replace(once, profile=shown)
    roofline.__dict__.update(operations=once.operations, counts=once.counts, _modules=once._modules)
    return NetworkCosts(once.chain, receptive_fields(once.chain), roofline, shown, link)
