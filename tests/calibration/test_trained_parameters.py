"""What is trained: everything, what was added, maps of low rank, names, functions; and only that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pararealize.calibration.trained_parameters import TrainedParameters
from pararealize.errors import CalibrationError
from tests.tuning_networks import token_net


@pytest.mark.parametrize(
    "choice, wanted",
    [
        ("all", lambda name: True),
        ("added", lambda name: name.startswith(("adapters.", "coarse."))),
        (["head", "blocks.1.up.bias"], lambda name: name in ("head.weight", "head.bias", "blocks.1.up.bias")),
        (["*.bias"], lambda name: name.endswith(".bias")),
        (lambda name, parameter: parameter.ndim == 1, lambda name: "norm" in name or "bias" in name),
    ],
)
def test_choices(choice: Any, wanted: Callable[[str], bool]) -> None:
    _, net = token_net()
    trained = TrainedParameters(net, choice)
    names = {name for name, parameter in net.named_parameters() if any(parameter is each for each in trained.moved)}
    assert names == {name for name, _ in net.named_parameters() if wanted(name)}
    assert trained.count == sum(p.numel() for name, p in net.named_parameters() if wanted(name))


def test_frozen_parameters_stay_out_and_flags_are_put_back() -> None:
    _, net = token_net()
    net.head.requires_grad_(False)
    net.embed.weight.grad = marker = torch.ones_like(net.embed.weight)
    trained = TrainedParameters(net, "all")
    assert not any(p is net.head.weight for p in trained.free)
    added = TrainedParameters(net, "added")
    with added.with_gradients():
        assert not net.embed.weight.requires_grad
        assert net.embed.weight.grad is None
    assert net.embed.weight.requires_grad
    assert net.embed.weight.grad is marker
    assert not net.head.weight.requires_grad


def test_gradients_of_factors_are_those_of_autograd() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(3, 5, 3), nn.Flatten(), nn.Linear(10, 4))
    x = torch.randn(6, 3, 4)
    trained = TrainedParameters(net, "lora:2")
    assert [tuple(each.A.shape) for each in trained.low_rank] == [(2, 9), (2, 10)]
    start = net(x).detach()
    with torch.no_grad():
        for each in trained.low_rank:
            each.B.normal_()
        trained.write()
    assert not torch.equal(net(x), start)
    with trained.with_gradients():
        net(x).square().sum().backward()
        trained.pass_gradients()
    factors = [
        (each.A.detach().clone().requires_grad_(), each.B.detach().clone().requires_grad_())
        for each in trained.low_rank
    ]
    weights = [each.start + (B @ A).view_as(each.start) for each, (A, B) in zip(trained.low_rank, factors, strict=True)]
    names = dict(zip(("0.weight", "2.weight"), weights, strict=True))
    torch.func.functional_call(net, names, (x,)).square().sum().backward()
    for each, (A, B) in zip(trained.low_rank, factors, strict=True):
        torch.testing.assert_close(each.A.grad, A.grad)
        torch.testing.assert_close(each.B.grad, B.grad)
        assert each.weight.grad is None


def test_low_rank_begins_where_the_network_is() -> None:
    _, net = token_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    trained = TrainedParameters(net, "lora:3")
    trained.write()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(each.weight is net.embed.weight for each in trained.low_rank)
    assert any(each.weight is net.blocks[0].up.weight for each in trained.low_rank)


def test_refusals() -> None:
    _, net = token_net("linear")
    with pytest.raises(CalibrationError, match="train='added' leaves nothing to train: adapters are identities"):
        TrainedParameters(net, "added")
    for wrong in ("some", "lora:0", "lora:x"):
        with pytest.raises(CalibrationError, match=f"train is '{wrong}'; pass 'all', 'added', 'lora'"):
            TrainedParameters(net, wrong)
    with pytest.raises(CalibrationError, match=r"called 'heads' or stands below it; there are, for instance, head"):
        TrainedParameters(net, ["heads"])
    with pytest.raises(CalibrationError, match=r"leaves nothing to train: parameters are called"):
        TrainedParameters(net, lambda name, parameter: False)
    with pytest.raises(CalibrationError, match="all is frozen"):
        TrainedParameters(net.requires_grad_(False), "all")
