"""What no CUDA graph can hold is found before a capture, and looking for it changes nothing."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, nn

from pararealize import PararealModule, pararealize
from pararealize.errors import CaptureError, ExampleError
from pararealize.network.local.capture_checks import check_hooks, check_static
from pararealize.network.local.module import capture_graphs, run_local
from pararealize.network.local.streams import Runner
from tests.cuda_double import cuda_on_the_cpu
from tests.models import SmallResNet

X = torch.randn(4, 8)


class Opaque(nn.Linear):
    """A layer whose path depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else super().forward(2 * x)


class Chance(nn.Linear):
    """A layer with random numbers of Python."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (0.5 + random.random())


def network(kind: type[nn.Linear] = nn.Linear) -> PararealModule:
    model = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), kind(8, 8)) for _ in range(3)), nn.Linear(8, 2))
    return pararealize(model, n=2, example_inputs=X, coarse="linear", leaf_modules=[kind])


@pytest.mark.parametrize("kind, message", [(Opaque, "asks the GPU for values"), (Chance, "from Python or NumPy")])
def test_what_depends_on_values_is_refused_before_anything_is_done(kind: type[nn.Linear], message: str) -> None:
    net = network(kind)
    state = random.getstate()
    with cuda_on_the_cpu() as double:
        with pytest.raises(CaptureError, match=message):
            capture_graphs(net, X)
        assert not double.graphs
        assert random.getstate() == state
        assert run_local(net)(X).shape == (4, 2)


def test_a_momentum_that_is_counted_is_read_from_the_gpu() -> None:
    model = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)) for _ in range(3)))
    net = pararealize(model, n=2, example_inputs=X, coarse="linear")
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = None
    with pytest.raises(CaptureError, match="asks the GPU for values"):
        check_static(net, Runner(net, net.graph, None), [X])
    check_static(net.eval(), Runner(net, net.graph, None), [X])


def test_looking_changes_nothing() -> None:
    net = pararealize(SmallResNet(), n=3, example_inputs=torch.randn(4, 3, 8, 8))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    check_static(net, Runner(net, net.graph, None), [torch.randn(4, 3, 8, 8)])
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    with pytest.raises(ExampleError, match="does not accept the example inputs"):
        check_static(net, Runner(net, net.graph, None), [torch.randn(4, 5, 8, 8)])


@pytest.mark.parametrize("where", ["the network", "a layer", "a segment"])
def test_hooks_of_modules_are_refused(where: str) -> None:
    net = network()
    module = {"the network": net, "a layer": net.get_submodule("0.0"), "a segment": net.segments["g2"]}[where]
    handle = module.register_forward_pre_hook(lambda *_: None)
    with pytest.raises(CaptureError, match="has hooks, which would not run"):
        check_hooks(net)
    handle.remove()
    check_hooks(net)
