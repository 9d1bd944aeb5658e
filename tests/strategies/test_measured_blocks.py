"""Seconds on a line between two measured batch sizes; plans of them measure what they add."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from pararealize.analysis.blocks import find_blocks
from pararealize.strategies.measured_blocks import MeasuredBlocks
from pararealize.tracing.front_end import capture
from tests.strategy_costs import network


def test_a_line_between_two_batches():
    model = network(3)
    chains = tuple(find_blocks(capture(model, torch.randn(batch, 4), check=False)) for batch in (2, 10))
    measured = MeasuredBlocks(chains, repeats=1)

    def of(seconds):
        costs = measured.measured[0]
        one = {"seconds_forward": seconds, "seconds_backward": 2 * seconds}
        blocks = tuple(dataclasses.replace(block, **one) for block in costs.blocks)
        return dataclasses.replace(costs, blocks=blocks)

    measured.__dict__["measured"] = (of(1.0), of(3.0))
    assert [measured.costs(batch).blocks[0].seconds_forward for batch in (2, 6, 10, 18)] == [1.0, 2.0, 3.0, 5.0]
    assert measured.costs(6).blocks[0].seconds_backward == 4.0
    alone = MeasuredBlocks(chains[1:], repeats=1)
    alone.__dict__["measured"] = (of(3.0),)
    assert alone.costs(5).blocks[0].seconds_forward == pytest.approx(1.5)
    assert measured.operations.blocks[0].bytes_parameters == 4 * (16 * 16 + 16)
