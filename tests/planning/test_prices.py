"""What adapters and coarse blocks cost: counted or measured, of a width and of fields that the network asks for."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from pararealize.analysis.cost import PER_ELEMENT, BlockCost, Costs, count_module
from pararealize.errors import FieldError
from pararealize.models import resnet20
from pararealize.planning.search import plan_segments
from tests.planning_inputs import known


@pytest.fixture(scope="module")
def small():
    return known(resnet20(), torch.randn(2, 3, 32, 32))


def test_costs_in_seconds_measure_adapters_and_coarse_blocks_too(small, monkeypatch):
    chain, fields, costs = small

    def timed(cost: BlockCost) -> BlockCost:
        return dataclasses.replace(
            cost, seconds_forward=cost.work_forward * 2e-12, seconds_backward=cost.work_backward * 2e-12
        )

    sums = set()

    def measure(module, x, batch, *, first=False, inputs=1):
        assert batch == 2
        if inputs == 2:
            a, b = torch.rand(2, *x.shape), torch.rand(2, *x.shape)
            sums.add(next(name for name, c in (("difference", a - b), ("sum", a + b)) if torch.equal(module(a, b), c)))
            written = x.numel * PER_ELEMENT * 2e-12
            return written, 2 * written
        cost = timed(count_module(module, x, first=first))
        return cost.seconds_forward, cost.seconds_backward

    monkeypatch.setattr("pararealize.planning.prices.measure_module", measure)
    seconds = Costs(
        unit="seconds", stem=timed(costs.stem), blocks=tuple(map(timed, costs.blocks)), head=timed(costs.head)
    )
    counted, measured = plan_segments(chain, fields, costs, 3), plan_segments(chain, fields, seconds, 3)
    assert measured.virtual_speedup == pytest.approx(counted.virtual_speedup)
    assert measured.serial == pytest.approx(2e-12 * counted.serial)
    assert "seconds a batch of 2" in str(measured)
    assert sums == {"difference", "sum"}


def test_exact_and_custom_blocks_have_no_parameters_of_their_own(small):
    exact = plan_segments(*small, 3, coarse="exact")
    assert exact.parameters.coarse == 0
    assert exact.coarse_blocks[0].flops_forward == exact.segments[1].flops_forward
    custom = plan_segments(*small, 3, coarse=lambda *_: nn.Identity())
    assert custom.coarse_blocks[0].kind == "custom"
    assert "not counted" in custom.notes[0]


class Strange(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return torch.renorm(self.conv(x), 2, 0, 1.0)


def test_an_unknown_operation_stops_only_what_needs_its_field():
    what = known(nn.Sequential(*[Strange() for _ in range(4)]), torch.randn(2, 4, 8, 8))
    assert plan_segments(*what, 2, coarse="linear").n == 2
    with pytest.raises(FieldError, match=r"torch.renorm \(node .*\); pass leaf_modules=\[Strange\]"):
        plan_segments(*what, 2, coarse="paper")


def test_bottlenecks_mix_tokens_as_the_network_does():
    """By a matrix where the network has one, which asks for as many tokens; else by a convolution, which does not."""

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.channels = nn.Linear(5, 5), nn.Linear(8, 8)

        def forward(self, x):
            return x + self.channels(x + self.tokens(x.transpose(1, 2)).transpose(1, 2))

    def kernels(*layers):
        plan = plan_segments(*known(nn.Sequential(*layers), torch.randn(2, 5, 8)), 3, coarse="bottleneck")
        return [block.kernel for block in plan.coarse_blocks]

    attention = [nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True) for _ in range(4)]
    assert kernels(*(Layer() for _ in range(4))) == [0, 0]
    assert kernels(*attention) == [5, 5]
