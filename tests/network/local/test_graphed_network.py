"""What fits a capture, what stands in for parameters while it lasts, and what is put back afterwards."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, nn

from pararealize import PararealModule, pararealize
from pararealize.errors import CaptureError
from pararealize.network.local.graphed_network import ArgumentRecorder, call_key, preserve_network_state
from pararealize.network.local.module import capture_graphs
from tests.cuda_double import cuda_on_the_cpu
from tests.models import Perceptron, SmallResNet

X = torch.randn(4, 8)


class Moving(nn.Linear):
    """A layer that puts its parameter into other memory, as recurrent ones do."""

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data = self.weight.data.clone()
        return super().forward(x)


def network(kind: type[nn.Linear] = nn.Linear) -> PararealModule:
    model = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), kind(8, 8)) for _ in range(3)), nn.Linear(8, 2))
    return pararealize(model, n=2, example_inputs=X, coarse="linear", leaf_modules=[kind])


def test_parameters_that_move_are_noticed() -> None:
    net = network(Moving)
    weights = [id(parameter) for parameter in net.parameters()]
    with cuda_on_the_cpu(), pytest.raises(CaptureError, match="moves its parameters to other memory"):
        capture_graphs(net, X)
    assert [id(parameter) for parameter in net.parameters()] == weights


def test_what_makes_two_calls_the_same() -> None:
    key = call_key(True, [X, None, 3])
    assert key == call_key(True, [X + 1, None, 3])
    others = [(False, [X, None, 3]), (True, [X[:2], None, 3]), (True, [X.double(), None, 3]), (True, [X, None, 4])]
    assert all(key != call_key(training, inputs) for training, inputs in others)


def test_buffers_and_random_states_are_put_back_even_after_an_error() -> None:
    net = pararealize(SmallResNet(), n=2, example_inputs=torch.randn(4, 3, 8, 8))
    before, state, drawn = [buffer.clone() for buffer in net.buffers()], torch.get_rng_state(), random.getstate()
    with pytest.raises(ZeroDivisionError), preserve_network_state(net):  # noqa: PT012
        net(torch.randn(4, 3, 8, 8))
        random.random()
        _ = 1 / 0
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), before, strict=True))
    assert torch.equal(state, torch.get_rng_state())
    assert random.getstate() == drawn


def test_entering_sees_what_each_part_reads() -> None:
    net = pararealize(Perceptron(), n=3, example_inputs=X)
    recorder = ArgumentRecorder(net, net.graph)
    recorder.run(X)
    seen = {node.name: values for node, values in recorder.arguments.items()}
    assert torch.equal(seen["x_2"][0], X)
    assert torch.equal(seen["y_2"][0], net.adapters["C2"](X))
    assert [seen[name][0].requires_grad for name in ("x_2", "y_2", "F_1")] == [False, True, True]
