"""A forward pass in one graph gives what the eager one gives, at batch 1 and with little work of the host."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from pararealize import capture_inference, pararealize
from pararealize.errors import DeviceError, ModelError
from tests.models import Perceptron
from tests.network.local.test_module import MACHINES, assert_same, convert, like, machine


@pytest.mark.parametrize("device", MACHINES)
@pytest.mark.parametrize("name", ["convolutions", "masks"])
def test_replays_give_what_the_network_gives(name: str, device: str) -> None:
    net, x = convert(name, device=device, coarse="linear")
    net, x = net.eval(), x[:1]
    with machine(device) as double:
        fast = capture_inference(net, x)
        first = fast(x)
        kept = first.clone()
        for _ in range(2):
            x = like(x)
            assert_same(fast(x), net(x).detach())
        assert torch.equal(first, kept), "outputs are copies"
        assert not first.requires_grad
        assert double is None or double.graphs[0].replays == 3
        more = torch.cat([x, x])
        assert_same(fast(more), net(more).detach())
        assert double is None or double.graphs[0].replays == 3
        fast.release()
        assert_same(fast(x), net(x).detach())


def test_any_module_is_captured_and_none_on_the_cpu() -> None:
    model, x = Perceptron().eval(), torch.randn(1, 8)
    twin = copy.deepcopy(model)
    with pytest.raises(DeviceError, match="need a network on GPUs"):
        capture_inference(model, x)
    with machine("cpu"):
        fast = capture_inference(model, x)
        with torch.no_grad():
            for net in (model, twin):
                next(net.parameters()).mul_(2)  # in place, as optimisers do
        assert_same(fast(x), twin(x).detach())
        model.double().float()
        with pytest.raises(ModelError, match="moved, replaced or frozen"):
            fast(x)


@dataclasses.dataclass
class Signal:
    x: torch.Tensor
    scale: float = 1.0


@dataclasses.dataclass
class Scores:
    logits: torch.Tensor
    hidden: torch.Tensor


class OfDataclasses(Perceptron):
    def forward(self, signal: Signal) -> Scores:
        logits = super().forward(signal.x * signal.scale)
        return Scores(logits, logits * 2)


@pytest.mark.parametrize("is_converted", [False, True])
def test_dataclasses_are_no_plain_values(is_converted: bool) -> None:
    x = torch.randn(300, 8)
    other = x.clone()
    other[150] += 5  # which the text of a tensor leaves out
    net = OfDataclasses().eval()
    with machine("cpu"):
        if is_converted:
            net = pararealize(net, 2, example_inputs=(Signal(x),), coarse="linear").eval()
        fast = capture_inference(net, (Signal(x),))
        first = fast(Signal(x))
        kept = first.logits.clone()
        assert_same(fast(Signal(other)).hidden, net(Signal(other)).hidden.detach())
        assert torch.equal(first.logits, kept), "outputs are copies"
        if not is_converted:  # which would be recorded anew
            assert_same(fast(Signal(x, 2.0)).logits, net(Signal(x, 2.0)).logits.detach())
