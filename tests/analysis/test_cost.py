"""Costs: counted against formulas by hand and a real run's count, measured without a trace left behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pararealize.analysis.blocks import find_blocks
from pararealize.analysis.cost import PER_ELEMENT, BlockCost, Costs, count_costs, count_module, measure_costs
from pararealize.analysis.space import Space
from pararealize.errors import ModelError
from pararealize.models import resnet20, resnet164
from pararealize.tracing.front_end import capture


@pytest.fixture(scope="module")
def small():
    model = resnet20()
    return model, find_blocks(capture(model, torch.randn(2, 3, 32, 32)))


def cost(flops: int = 0, elements: int = 1, seconds: float | None = None) -> BlockCost:
    return BlockCost(
        flops_forward=flops,
        flops_backward=2 * flops,
        elements_forward=elements,
        elements_backward=elements,
        bytes_activations=4 * elements,
        bytes_parameters=0,
        seconds_forward=seconds,
        seconds_backward=seconds,
    )


def test_a_unit_counted_by_hand(small):
    _, chain = small
    unit = count_costs(chain).blocks[1]
    convolution = 2 * 9 * 16 * 16 * 32 * 32
    assert unit.flops_forward == 2 * convolution
    assert unit.flops_backward == 4 * convolution
    assert unit.elements_forward == pytest.approx(7 * 16 * 32 * 32, rel=0.01)  # two norms, relus, convolutions; one sum
    assert unit.bytes_activations == 7 * 16 * 32 * 32 * 4
    assert unit.bytes_parameters == 4 * (2 * 9 * 16 * 16 + 4 * 16)
    assert unit.work == unit.flops_forward + unit.flops_backward + PER_ELEMENT * (
        unit.elements_forward + unit.elements_backward
    )


def test_the_parts_add_up_to_a_count_of_the_whole_run(small):
    model, chain = small
    costs = count_costs(chain)
    x = torch.randn(2, 3, 32, 32)
    with FlopCounterMode(display=False) as counter:
        y = model(x)
        forward = counter.get_total_flops()
        y.sum().backward()
        backward = counter.get_total_flops() - forward
    model.zero_grad()
    parts = (costs.stem, *costs.blocks, costs.head)
    assert sum(part.flops_forward for part in parts) == forward // 2
    assert sum(part.flops_backward for part in parts) == backward // 2


def test_no_gradient_flows_into_the_input_or_frozen_parameters():
    image = Space(shape=(3, 8, 8), channel=0)
    conv = nn.Conv2d(3, 4, 1)
    assert count_module(conv, image, first=True).flops_backward == count_module(conv, image).flops_forward
    assert count_module(conv.requires_grad_(requires_grad=False), image, first=True).flops_backward == 0


def test_blocks_without_convolutions_are_not_free():
    model = nn.Sequential(*[nn.Sequential(nn.LayerNorm(8), nn.GELU()) for _ in range(4)])
    counted = count_module(model[0], Space(shape=(8,), channel=0))
    assert counted.flops_forward == 0
    assert counted.work > 0


def test_views_write_nothing():
    flat = count_module(nn.Sequential(nn.Flatten(), nn.Unflatten(1, (4, 4))), Space(shape=(4, 4), channel=0))
    assert flat.elements_forward == 0


def test_counting_leaves_no_trace(small):
    model, chain = small
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state, modes = torch.get_rng_state(), [module.training for module in model.modules()]
    count_costs(chain)
    costs = measure_costs(chain, repeats=2, warmup=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [module.training for module in model.modules()] == modes
    assert costs.unit == "seconds"
    assert all(part.seconds > 0 for part in (costs.stem, *costs.blocks, costs.head))
    assert costs.blocks[0].seconds == costs.blocks[1].seconds  # interchangeable: measured once


def test_interchangeable_neighbours_are_measured_together(monkeypatch):
    """Each of a run has an equal share of its seconds, however long the run that was measured is."""
    layers: list[nn.Module] = [nn.Linear(6, 6) for _ in range(23)]
    layers[3] = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
    chain = find_blocks(capture(nn.Sequential(*layers), torch.randn(2, 6)))
    products: list[int] = []

    def seconds(runs, *_, **__):
        products.extend(len(list(run.module.parameters())) // 2 for run in runs)
        return [(float(count), 2.0 * count) for count in products]

    monkeypatch.setattr("pararealize.analysis.cost.median_seconds", seconds)
    costs = measure_costs(chain)
    assert max(products) == 8  # of the run of 19, not of that of 3, and not the whole of it
    assert {costs.split(block) for block in costs.blocks} == {(1.0, 2.0)}


def test_measuring_works_with_operations_in_place_and_gradients_off():
    model = nn.Sequential(*[nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 6)) for _ in range(3)])
    chain = find_blocks(capture(model, torch.randn(2, 6)))
    with torch.no_grad():
        assert measure_costs(chain, repeats=1, warmup=0).total > 0
        assert count_costs(chain).blocks[1].flops_backward == 4 * 36


def test_token_ids():
    model = nn.Sequential(nn.Embedding(10, 6), *[nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(3)])
    chain = find_blocks(capture(model, torch.randint(10, (2, 5))))
    assert count_costs(chain).blocks[0].flops_forward == 2 * 36 * 5
    assert measure_costs(chain, repeats=1, warmup=0).total > 0


def test_the_meta_device_is_counted_and_cannot_be_measured():
    with torch.device("meta"):
        model = resnet20()
    chain = find_blocks(capture(model, torch.randn(2, 3, 32, 32, device="meta")))
    assert count_costs(chain).blocks[1].flops_forward == 4 * 9 * 16 * 16 * 32 * 32
    with pytest.raises(ModelError, match='pass cost="flops"'):
        measure_costs(chain)


def test_what_cannot_be_counted_is_estimated_and_named(small, monkeypatch):
    _, chain = small

    def fails(*_, **__):
        raise RuntimeError("no kernel\nfor fake tensors")

    monkeypatch.setattr("pararealize.analysis.cost.count_operations", fails)
    costs = count_costs(chain)
    assert costs.blocks[1].flops_forward == 2 * chain.blocks[1].parameters
    assert f"{chain.blocks[0].name} cannot be counted (no kernel); taken as 2 operations a parameter" in costs.notes


def test_interchangeable_blocks_are_counted_once(monkeypatch):
    with torch.device("meta"):
        chain = find_blocks(capture(resnet164(), torch.randn(2, 3, 32, 32, device="meta")))
    calls = []
    monkeypatch.setattr(
        "pararealize.analysis.cost.count_operations", lambda *_: (calls.append(1), ((8, 16), (4, 8)))[1]
    )
    costs = count_costs(chain)
    assert len(costs.blocks) == 54
    assert len(calls) <= 6 + 2  # kinds of blocks, the stem and the head


def test_sums_and_prices():
    costs = Costs(unit="flops", stem=cost(1), blocks=(cost(10), cost(20), cost(30)), head=cost(2))
    assert costs.step(1, 2) == costs.blocks[1].work + costs.blocks[2].work
    assert costs.total == sum(part.work for part in (costs.stem, *costs.blocks, costs.head))
    assert costs.split(cost(7)) == (cost(7).work_forward, cost(7).work_backward)
    timed = Costs(unit="seconds", stem=cost(), blocks=(cost(100, seconds=0.5), cost(100, seconds=1.5)), head=cost())
    assert timed.step(0, 1) == 4
    assert timed.split(cost(200, elements=2)) == (2, 2)  # only counted: at the rate of the blocks
    assert timed.split(timed.blocks[0]) == (0.5, 0.5)
    assert "seconds" in str(timed)
