"""Seconds on a line between two measured batch sizes; plans of them measure what they add."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import pytest
import torch
from torch import nn

from pararealize.analysis.blocks import find_blocks
from pararealize.analysis.cost import measure_costs
from pararealize.errors import ModelError
from pararealize.strategies.measured_blocks import MeasuredBlocks
from pararealize.tracing.front_end import capture
from tests.strategy_costs import network


def test_a_line_between_two_batches():
    chain = find_blocks(capture(network(3), torch.randn(2, 4), check=False))
    measured = MeasuredBlocks(chain, (2, 10), repeats=1)
    assert list(measured.measured) == [2, 10]
    once = measured.measured[2]

    def of(seconds):
        one = {"seconds_forward": seconds, "seconds_backward": 2 * seconds}
        return dataclasses.replace(once, blocks=tuple(dataclasses.replace(block, **one) for block in once.blocks))

    measured.__dict__["measured"] = {2: of(1.0), 10: of(3.0)}
    assert [measured.costs(batch).blocks[0].seconds_forward for batch in (2, 6, 10, 18)] == [1.0, 2.0, 3.0, 5.0]
    assert measured.costs(6).blocks[0].seconds_backward == 4.0
    alone = MeasuredBlocks(chain, (10,), repeats=1)
    alone.__dict__["measured"] = {10: of(3.0)}
    assert alone.costs(5).blocks[0].seconds_forward == pytest.approx(1.5)
    assert measured.operations.blocks[0].bytes_parameters == 4 * (16 * 16 + 16)


class Reads(nn.Module):
    """Notes how many samples it is given."""

    seen: ClassVar[list[int]] = []

    def forward(self, x):
        self.seen.append(len(x))
        return x + 1


def test_one_sample_is_measured_as_one():
    """A network is recorded with two samples at least; half their seconds were taken for those of one."""
    layers = [nn.Sequential(nn.Linear(4, 4), Reads()) for _ in range(3)]
    chain = find_blocks(capture(nn.Sequential(*layers), torch.randn(1, 4), leaf_modules=[Reads]))
    assert chain.capture.batch == 2
    Reads.seen.clear()
    assert list(MeasuredBlocks(chain, (1, 6), repeats=1).measured) == [1, 6]
    assert set(Reads.seen) == {1, 2, 6}  # two are of counting, which computes nothing


def test_batch_norm_that_refuses_one_value_is_measured_with_two():
    layers = [nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU()) for _ in range(3)]
    chain = find_blocks(capture(nn.Sequential(*layers), torch.randn(2, 4)))
    assert list(MeasuredBlocks(chain, (1, 4), repeats=1).measured) == [2, 4]


def test_a_batch_that_the_model_fixes():
    class Fixed(nn.Module):
        def forward(self, x):
            return x.reshape(3, 4) * 1.0

    layers = [nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3)]
    chain = find_blocks(capture(nn.Sequential(Fixed(), *layers), torch.randn(3, 4)))
    assert chain.capture.fixed_batch
    assert list(MeasuredBlocks(chain, (1, 8), repeats=1).measured) == [3]
    with pytest.raises(ModelError, match="takes 3 samples alone, and cannot be measured at 8"):
        measure_costs(chain, batch=8)
