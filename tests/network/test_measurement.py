"""Seconds of a network's parts, measured on the network itself, which stays as it was found."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pararealize import measure_network, pararealize, simulate
from pararealize.errors import ModelError
from pararealize.models import resnet20
from tests.models import OverwritesInput


def tokens() -> tuple[nn.Module, torch.Tensor]:
    layers = [nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(4)]
    return nn.Sequential(nn.Embedding(10, 8), *layers), torch.randint(10, (2, 5))


@pytest.mark.parametrize("coarse", ["paper", "linear", "exact", "block"])
def test_every_part_is_measured_and_the_network_left_as_found(coarse):
    net = pararealize(resnet20(), 3, coarse=coarse)
    x = torch.randn(2, 3, 32, 32)
    state = {key: value.clone() for key, value in net.state_dict().items()}
    original = resnet20()
    random = torch.get_rng_state()
    times, beside = measure_network(net, x, repeats=1, warmup=0, beside={"original": (original, x)})
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert net.training
    parts = (times.stem, *times.segments, *times.adapters, *times.coarse, times.head, beside["original"])
    assert all(forward > 0 and backward > 0 for forward, backward in parts)
    assert simulate(net.plan, times).step > 0


def test_networks_without_images():
    model, x = tokens()
    net = pararealize(model, 2, example_inputs=x)
    times, _ = measure_network(net, {"input": x}, repeats=1, warmup=0)
    assert len(times.segments) == 2


def test_parts_see_what_enters_them(monkeypatch):
    """What is timed is the network's own arithmetic, on the values of a forward pass."""
    model = resnet20().eval()
    net = pararealize(model, 3, coarse="paper").double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    seen = {}

    def look(runs, device, *, repeats, warmup):
        for run in runs:
            run.reset()
        seen["outputs"] = [run.forward()[0] for run in runs]
        return [(1.0, 1.0)] * len(runs)

    monkeypatch.setattr("pararealize.network.measurement.median_seconds", look)
    measure_network(net, x)
    names = ["stem", "C2", "C3", "g1", "g2", "g3", "F1", "F2", "head"]
    outputs = dict(zip(names, seen["outputs"], strict=True))
    assert torch.allclose(outputs["head"], net(x))
    x2, x3 = net.adapters.C2(x), net.adapters.C3(x)
    assert torch.allclose(outputs["F1"], net.segments.g2(x2) + net.coarse.F1(outputs["g1"] - x2))
    assert torch.allclose(outputs["F2"], net.segments.g3(x3) + net.coarse.F2(outputs["F1"] - x3))


def test_gradients_of_a_run_are_those_of_training():
    from pararealize.network.measurement import PartRun

    layer = nn.Linear(3, 2)
    x = torch.randn(4, 3)
    run = PartRun(layer, (x,))
    for _ in range(2):  # reset() forgets the gradients of the first
        run.reset()
        run.backward(run.forward())
    expected = torch.autograd.grad(layer(x).sum(), layer.weight)[0]
    assert torch.allclose(layer.weight.grad, expected)


def test_inputs_stay_where_a_network_writes_into_them():
    x = torch.randn(2, 8)
    net, before = pararealize(OverwritesInput(), 1, example_inputs=x.clone()), x.clone()
    measure_network(net, x, repeats=1, warmup=0)
    assert torch.equal(x, before)


def test_meta_networks_do_not_run():
    with torch.device("meta"):
        net = pararealize(resnet20(), 3, example_inputs=torch.randn(2, 3, 32, 32, device="meta"))
    with pytest.raises(ModelError, match="meta device"):
        measure_network(net, torch.randn(2, 3, 32, 32))
