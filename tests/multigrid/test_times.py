"""Seconds of every layer: as many as layers, on a network that is left as found, and what the serial one takes."""

import copy
import time

import pytest
import torch
from torch import Tensor, nn

from pararealize import layer_parallel
from pararealize.errors import PlanError
from pararealize.multigrid.times import LayerTimes, measure_layers
from tests.chains import Chains, example
from tests.models import StochasticDepth


def test_layers_are_measured_on_the_network() -> None:
    blocks = [StochasticDepth(width) for width in [6] * 6]
    model = nn.Sequential(nn.Linear(6, 6), *blocks, nn.Linear(6, 2)).eval()
    net = layer_parallel(model, coarsening=2, example_inputs=torch.ones(2, 6))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    times = measure_layers(net, torch.ones(2, 6))
    assert len(times.layers) == net.hierarchy.layers == 6
    assert min(min(row) for row in times.layers) > 0
    assert times.serial[0] == pytest.approx(times.stem[0] + sum(row[0] for row in times.layers) + times.head[0])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


class Busy(nn.Module):
    """Keeps the processor busy for so many seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: Tensor) -> Tensor:
        until = time.process_time() + self.seconds
        while time.process_time() < until:
            pass
        return x.clone()


class Uneven(nn.Module):
    """Residual blocks, of which the third one is slow, and a slow head."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(4))
        self.busy = nn.ModuleList(Busy(seconds) for seconds in (0, 0, 0.05, 0))
        self.head = Busy(0.01)

    def forward(self, x: Tensor) -> Tensor:
        for layer, busy in zip(self.layers, self.busy, strict=True):
            x = x + 0.1 * busy(layer(x))
        return self.head(x)


def test_time_is_counted_where_it_is_spent() -> None:
    net = layer_parallel(Uneven(), coarsening=2, example_inputs=torch.randn(2, 3), leaf_modules=[Busy])
    times = measure_layers(net, {"x": torch.randn(2, 3)}, repeats=2)
    forward = [row[0] for row in times.layers]
    assert forward[2] >= 0.05
    assert max(forward[0], forward[1], forward[3]) < 0.04
    assert 0.01 <= times.head[0] < 0.05
    assert times.layers[2][1] < 0.04  # its backward is quick


def test_buffers_flags_and_random_states_are_left_as_found() -> None:
    model, x = Chains((6, 4), (4, 5), norm=True, drop=0.5).double(), example()
    net = layer_parallel(model, coarsening=2, example_inputs=x)
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    times = measure_layers(net, x, repeats=1)
    assert len(times.layers) == net.hierarchy.layers == 11
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training


def test_equal_times_add_up_and_devices_other_than_the_cpu_are_refused() -> None:
    times = LayerTimes.equal(4, forward=1.0, backward=3.0, input_only=2.0)
    assert times.layers == ((1.0, 3.0, 2.0),) * 4
    assert times.serial == (4.0, 12.0)
    net = layer_parallel(Chains(), coarsening=2, example_inputs=torch.randn(2, 3)).to("meta")
    with pytest.raises(PlanError, match="the network is on meta"):
        measure_layers(net, torch.randn(2, 3))
